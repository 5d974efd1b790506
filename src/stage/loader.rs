//! Batches made ahead of their use, so that the model does not wait for pictures.

use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use rayon::prelude::*;

/// Calls `take` with what `make` gives for each of `items`, in order, and how long it waited for it; `make` runs
/// beside it on a thread of its own. At most `queue` wait; one more is being made, and one in use.
pub(crate) fn ahead<I, T: Send>(
    queue: usize,
    items: impl Iterator<Item = I> + Send,
    make: impl Fn(I) -> anyhow::Result<T> + Send,
    mut take: impl FnMut(T, Duration) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (sender, receiver) = sync_channel(queue);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for item in items {
                // An error ends the work; a closed channel means the other side has ended it.
                let made = make(item);
                let failed = made.is_err();
                if sender.send(made).is_err() || failed {
                    break;
                }
            }
        });
        let mut result = Ok(());
        while result.is_ok() {
            let asked = Instant::now();
            let Ok(made) = receiver.recv() else { break };
            result = made.and_then(|made| take(made, asked.elapsed()));
        }
        // Closed before the scope waits for the other side, which may wait for room.
        drop(receiver);
        result
    })
}

/// What `make` gives for each of `items`, in their order, made on all cores. Nothing of libtorch belongs in `make`:
/// each of rayon's threads would start a team of threads of libtorch's.
pub(crate) fn each<T: Send>(
    items: &[String],
    make: impl Fn(&str) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    items.par_iter().map(|item| make(item)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn in_order_until_an_error() {
        let mut taken = Vec::new();
        let make = |i: i32| if i < 5 { Ok(i * 2) } else { anyhow::bail!("no more") };
        let result = ahead(1, 0..10, make, |x, _| {
            taken.push(x);
            Ok(())
        });
        assert_eq!(taken, [0, 2, 4, 6, 8]);
        assert_eq!(result.unwrap_err().to_string(), "no more");
        assert!(ahead(1, 0..10, Ok, |_, _| anyhow::bail!("stop")).is_err());
    }

    #[test]
    fn no_more_is_made_than_the_queue_holds() {
        let (made, mut taken) = (AtomicUsize::new(0), 0);
        let make = |i: usize| Ok(made.fetch_add(1, Ordering::SeqCst).max(i));
        let result = ahead(3, 0..20, make, |_, _| {
            std::thread::sleep(Duration::from_millis(5));
            taken += 1;
            // In use, waiting, and one that waits for room.
            assert!(made.load(Ordering::SeqCst) <= taken + 3 + 1);
            Ok(())
        });
        result.unwrap();
        assert_eq!(made.load(Ordering::SeqCst), 20);
    }

    #[test]
    fn a_slow_maker_is_waited_for() {
        let mut waited = Duration::ZERO;
        let make = |item: i32| {
            std::thread::sleep(Duration::from_millis(20));
            Ok(item)
        };
        let result = ahead(3, 0..3, make, |_, wait| {
            waited += wait;
            Ok(())
        });
        result.unwrap();
        assert!(waited > Duration::ZERO);
    }

    /// While one is taken the next is made: each is taken only once the making of the next has begun.
    #[test]
    fn what_comes_next_is_made_meanwhile() {
        let (begin, begun) = std::sync::mpsc::channel();
        let make = |item: i32| {
            begin.send(item)?;
            Ok(item)
        };
        let result = ahead(3, 0..6, make, |item, _| {
            while item < 5 && begun.recv()? <= item {}
            Ok(())
        });
        result.unwrap();
    }

    #[test]
    fn any_number_of_threads_gives_the_same_in_order() {
        let items: Vec<String> = (0..50).map(|i| i.to_string()).collect();
        let make = |item: &str| Ok(item.parse::<u64>()?.pow(2));
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let made = pool.install(|| each(&items, make)).unwrap();
            assert!(made.into_iter().eq((0..50).map(|i| i * i)), "{threads}");
        }
        assert!(each(&["x".to_owned()], make).is_err());
    }
}
