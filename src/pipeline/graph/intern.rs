//! Finding the equal one among many: things are kept once, by their place.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

/// Places of things that are kept elsewhere, by their hash. Half of a hash stands beside the place, so that a table
/// that grows need not look at the things.
#[derive(Debug, Default)]
pub(super) struct Places(HashTable<(u32, u32)>);

impl Places {
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let short = (hash >> 32) as u32;
        let found = self.0.find(spread(short), |(of, place)| *of == short && is_it(*place));
        found.map(|(_, place)| *place)
    }

    pub(super) fn insert(&mut self, hash: u64, place: u32) {
        let short = (hash >> 32) as u32;
        self.0.insert_unique(spread(short), (short, place), |(of, _)| spread(*of));
    }
}

/// A table looks at both ends of a hash.
fn spread(short: u32) -> u64 {
    u64::from(short).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Texts, each once.
#[derive(Debug, Default)]
pub(super) struct Texts {
    texts: Vec<Box<str>>,
    places: Places,
    /// After the last that was asked for: stages go through the same items in the same order.
    next: usize,
    hasher: DefaultHashBuilder,
}

impl Texts {
    pub(super) fn place(&mut self, text: &str) -> u32 {
        if self.texts.get(self.next).is_some_and(|next| **next == *text) {
            self.next += 1;
            return self.next as u32 - 1;
        }
        let hash = self.hasher.hash_one(text);
        let place = self.places.find(hash, |place| *self.texts[place as usize] == *text).unwrap_or_else(|| {
            let place = self.texts.len() as u32;
            self.places.insert(hash, place);
            self.texts.push(text.into());
            place
        });
        self.next = place as usize + 1;
        place
    }

    pub(super) fn at(&self, place: u32) -> &str {
        &self.texts[place as usize]
    }
}
