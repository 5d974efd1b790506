//! The permutohedral lattice (Adams, Baek and Davis 2010): Gaussian filtering of points of some dimensions in time
//! linear in their number.
//!
//! `V` is one more than the dimensions: the vertices of a simplex. A point lies in one simplex and gives to its vertices
//! by barycentric weights (splat), the vertices give to their neighbours along each of `V` axes (blur), and points take
//! back what their vertices have (slice).

use std::array::from_fn;

/// Where points lie in the lattice, and how its vertices hang together.
pub(super) struct Lattice<const V: usize> {
    /// Of each point, the vertices of its simplex.
    vertices: Vec<[u32; V]>,
    /// Of each point, its weights for these, with the normalisation.
    weights: Vec<[f32; V]>,
    n_vertices: usize,
    /// Chains of vertices that are neighbours along an axis, axis after axis; vertices without a neighbour are left out.
    chains: Vec<u32>,
    /// The end of each chain in `chains`.
    ends: Vec<u32>,
}

impl<const V: usize> Lattice<V> {
    /// Of `n` points; the filter has a standard deviation of 1 in each of the `V - 1` dimensions, and is normalised
    /// symmetrically: what is splat and what is sliced is divided by the root of the filtered 1.
    #[inline(always)]
    pub(super) fn new(n: usize, point: impl Fn(usize) -> [f32; V]) -> Self {
        let mut index = Index::new();
        let units = units::<V>();
        let scale = scale::<V>();
        let (mut vertices, mut weights) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let mut last = (Simplex { origin: 0, rank: [V; V] }, [0; V]);
        for i in 0..n {
            let (simplex, weight) = simplex(&point(i), &scale, &units);
            if simplex != last.0 {
                last = (simplex, simplex.keys(&units).map(|key| index.insert(key)));
            }
            vertices.push(last.1);
            weights.push(weight);
        }
        let (chains, ends) = chains(&index, &units);
        let mut lattice = Self { vertices, weights, n_vertices: index.keys.len(), chains, ends };
        lattice.normalise();
        lattice
    }

    fn normalise(&mut self) {
        let mut values = vec![[0.0]; self.n_vertices];
        (0..self.vertices.len()).for_each(|i| self.splat(i, &[1.0], &mut values));
        self.blur(&mut values);
        for i in 0..self.vertices.len() {
            let norm = 1.0 / (self.slice(i, &values)[0] + 1e-20).sqrt();
            self.weights[i].iter_mut().for_each(|weight| *weight *= norm);
        }
    }

    pub(super) fn n_vertices(&self) -> usize {
        self.n_vertices
    }

    /// Adds what a point has to the vertices of its simplex.
    #[inline(always)]
    pub(super) fn splat<const W: usize>(&self, point: usize, value: &[f32; W], values: &mut [[f32; W]]) {
        for (&vertex, weight) in self.vertices[point].iter().zip(self.weights[point]) {
            let sum = &mut values[vertex as usize];
            for k in 0..W {
                sum[k] += weight * value[k];
            }
        }
    }

    /// What a point takes from the vertices of its simplex.
    #[inline(always)]
    pub(super) fn slice<const W: usize>(&self, point: usize, values: &[[f32; W]]) -> [f32; W] {
        let mut sum = [0.0; W];
        for (&vertex, weight) in self.vertices[point].iter().zip(self.weights[point]) {
            let value = &values[vertex as usize];
            for k in 0..W {
                sum[k] += weight * value[k];
            }
        }
        sum
    }

    /// Along each axis, a vertex gets half of what its two neighbours had.
    #[inline(always)]
    pub(super) fn blur<const W: usize>(&self, values: &mut [[f32; W]]) {
        let mut start = 0;
        for &end in &self.ends {
            let chain = &self.chains[start..end as usize];
            start = end as usize;
            let mut before = [0.0; W];
            let mut here = values[chain[0] as usize];
            for (i, &vertex) in chain.iter().enumerate() {
                let next = chain.get(i + 1).map_or([0.0; W], |&next| values[next as usize]);
                let value = &mut values[vertex as usize];
                for k in 0..W {
                    value[k] = here[k] + 0.5 * (before[k] + next[k]);
                }
                (before, here) = (here, next);
            }
        }
    }
}

/// A vertex as a number. Its coordinates are all congruent to one remainder modulo `V`, which stands in the low bits;
/// above it stand the quotients of all but the last, which follows from them: the sum of coordinates is 0. What does
/// not fit its bits runs over into the next, so that vertices would have to be thousands apart to be taken for one.
type Key = u64;
const REMAINDER_BITS: usize = 4;

/// What adds 1 to each quotient; 0 for the last.
fn units<const V: usize>() -> [Key; V] {
    let bits = (64 - REMAINDER_BITS) / (V - 1);
    from_fn(|axis| if axis + 1 < V { 1 << (REMAINDER_BITS + axis * bits) } else { 0 })
}

/// From a dimension to the lattice's plane, so that the blur is of deviation 1 (page 5 and 6 there).
fn scale<const V: usize>() -> [f32; V] {
    let deviation = ((2.0f64 / 3.0).sqrt() * V as f64) as f32;
    from_fn(|i| if i + 1 < V { (1.0 / (((i + 1) * (i + 2)) as f64).sqrt() * f64::from(deviation)) as f32 } else { 0.0 })
}

#[derive(Clone, Copy, PartialEq)]
struct Simplex<const V: usize> {
    /// Its vertex with remainder 0.
    origin: Key,
    /// The place of each coordinate's distance from the origin among all, the largest first.
    rank: [usize; V],
}

impl<const V: usize> Simplex<V> {
    /// Its vertices by remainder.
    #[inline(always)]
    fn keys(&self, units: &[Key; V]) -> [Key; V] {
        let mut of_rank = [0; V];
        (0..V).for_each(|axis| of_rank[self.rank[axis]] = units[axis]);
        let mut key = self.origin;
        from_fn(|remainder| {
            let this = key;
            key = key.wrapping_add(1).wrapping_sub(of_rank[V - 1 - remainder]);
            this
        })
    }
}

/// The simplex of a point, and the barycentric weights of its vertices by remainder (page 5 to 10 there). The last
/// number of the point is not looked at.
#[inline(always)]
fn simplex<const V: usize>(point: &[f32; V], scale: &[f32; V], units: &[Key; V]) -> (Simplex<V>, [f32; V]) {
    let (n, per_n) = (V as f32, 1.0 / V as f32);
    let mut elevated = [0.0; V];
    let mut sum = 0.0;
    for i in (1..V).rev() {
        let x = point[i - 1] * scale[i - 1];
        elevated[i] = sum - i as f32 * x;
        sum += x;
    }
    elevated[0] = sum;

    // The nearest point whose coordinates are multiples of V; their sum may not be 0.
    let mut quotient = elevated.map(|x| nearest(x * per_n) as i32);
    let excess: i32 = quotient.iter().sum();
    let distance: [f32; V] = from_fn(|i| elevated[i] - quotient[i] as f32 * n);
    let mut rank = [excess; V];
    for i in 0..V {
        for j in i + 1..V {
            let is_less = distance[i] < distance[j];
            rank[i] += i32::from(is_less);
            rank[j] += i32::from(!is_less);
        }
    }
    // Where it is not 0, the coordinates nearest to the next multiple go there.
    for i in 0..V {
        let step = i32::from(rank[i] < 0) - i32::from(rank[i] >= V as i32);
        rank[i] += step * V as i32;
        quotient[i] += step;
    }
    let rank = rank.map(|rank| rank as usize);

    let mut sorted = [0.0; V];
    (0..V).for_each(|i| sorted[rank[i]] = (elevated[i] - quotient[i] as f32 * n) * per_n);
    // Weight by remainder: how much the distance of one rank exceeds that of the next.
    let weights = from_fn(|remainder| match remainder {
        0 => 1.0 - sorted[0] + sorted[V - 1],
        _ => sorted[V - 1 - remainder] - sorted[V - remainder],
    });
    let add = |key: Key, i: usize| key.wrapping_add((i64::from(quotient[i]) as Key).wrapping_mul(units[i]));
    (Simplex { origin: (0..V).fold(0, add), rank }, weights)
}

/// The nearest whole number, of two the even one; for less than 2^22.
fn nearest(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

/// All chains of at least two, by axis and then by their first vertex.
fn chains<const V: usize>(index: &Index, units: &[Key; V]) -> (Vec<u32>, Vec<u32>) {
    let n = index.keys.len();
    let all = units.iter().fold(0, |sum: Key, unit| sum.wrapping_add(*unit));
    let (mut chains, mut ends) = (Vec::new(), Vec::new());
    let mut next = vec![NONE; n];
    let mut is_first = vec![true; n];
    for unit in units {
        is_first.fill(true);
        for (vertex, &key) in index.keys.iter().enumerate() {
            // One less in every coordinate, but V - 1 more along the axis.
            let remainder = key & ((1 << REMAINDER_BITS) - 1);
            let down = if remainder > 0 { 1 } else { all.wrapping_sub(V as Key - 1) };
            next[vertex] = index.find(key.wrapping_add(*unit).wrapping_sub(down));
            if next[vertex] != NONE {
                is_first[next[vertex] as usize] = false;
            }
        }
        for first in (0..n).filter(|&vertex| is_first[vertex] && next[vertex] != NONE) {
            let mut vertex = first as u32;
            while vertex != NONE {
                chains.push(vertex);
                vertex = next[vertex as usize];
            }
            ends.push(chains.len() as u32);
        }
    }
    (chains, ends)
}

const NONE: u32 = u32::MAX;

/// Keys in the order they came, and their places by key.
struct Index {
    keys: Vec<Key>,
    /// Open addressing: a key and its place, at most half of the slots taken.
    slots: Vec<(Key, u32)>,
}

impl Index {
    fn new() -> Self {
        Self { keys: Vec::new(), slots: vec![(0, NONE); 1 << 12] }
    }

    /// The slot of a key: that which has it, or the empty one where it would be.
    #[inline(always)]
    fn slot(&self, key: Key) -> usize {
        let bits = self.slots.len().trailing_zeros();
        let mut at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - bits)) as usize;
        while self.slots[at].1 != NONE && self.slots[at].0 != key {
            at = (at + 1) & (self.slots.len() - 1);
        }
        at
    }

    #[inline(always)]
    fn find(&self, key: Key) -> u32 {
        self.slots[self.slot(key)].1
    }

    #[inline(always)]
    fn insert(&mut self, key: Key) -> u32 {
        let slot = self.slot(key);
        if self.slots[slot].1 == NONE {
            self.slots[slot] = (key, self.keys.len() as u32);
            self.keys.push(key);
            if self.keys.len() * 2 > self.slots.len() {
                self.grow();
            }
            return self.keys.len() as u32 - 1;
        }
        self.slots[slot].1
    }

    fn grow(&mut self) {
        self.slots = vec![(0, NONE); self.slots.len() * 4];
        for (place, &key) in self.keys.iter().enumerate() {
            let slot = self.slot(key);
            self.slots[slot] = (key, place as u32);
        }
    }
}
