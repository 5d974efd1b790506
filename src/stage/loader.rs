//! Batches made one ahead of their use, so that the model does not wait for pictures.

use std::sync::mpsc::sync_channel;

/// Calls `take` with what `make` gives for each of `items`, in order; `make` runs beside it on a thread of its own.
pub(crate) fn ahead<I, T: Send>(
    items: impl Iterator<Item = I> + Send,
    make: impl Fn(I) -> anyhow::Result<T> + Send,
    mut take: impl FnMut(T) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (sender, receiver) = sync_channel(1);
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
        for made in receiver {
            result = made.and_then(&mut take);
            if result.is_err() {
                break;
            }
        }
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_until_an_error() {
        let mut taken = Vec::new();
        let make = |i: i32| if i < 5 { Ok(i * 2) } else { anyhow::bail!("no more") };
        let result = ahead(0..10, make, |x| {
            taken.push(x);
            Ok(())
        });
        assert_eq!(taken, [0, 2, 4, 6, 8]);
        assert_eq!(result.unwrap_err().to_string(), "no more");
        assert!(ahead(0..10, Ok, |_| anyhow::bail!("stop")).is_err());
    }
}
