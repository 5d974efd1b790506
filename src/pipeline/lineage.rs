//! Where an artifact comes from: a tree from it back to the user's files.

use std::collections::HashSet;

use serde::Serialize;

use super::graph::{Content, Graph, Input, SetIdx, UnitIdx};
use super::resolve::Resolver;
use super::words::size;
use crate::cache::Cache;
use crate::digest::{BlobDigest, UnitKey};

/// An artifact, or a file, and what it was made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    /// What the unit above reads it as; of the root the name of the output.
    pub slot: String,
    #[serde(flatten)]
    pub source: NodeSource,
    /// `None` where it has not been made.
    pub digest: Option<BlobDigest>,
    /// Bytes, as far as they are known.
    pub size: Option<u64>,
    pub state: NodeState,
    /// Empty where the same unit stands further up with what it read. Epochs of one training stand side by side: each
    /// read the one below it.
    pub inputs: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "source")]
pub enum NodeSource {
    Unit {
        unit: String,
        key: Option<UnitKey>,
        /// It stands further up already.
        is_repeated: bool,
    },
    File {
        path: String,
    },
    /// A small value made while planning.
    Value,
    /// So many artifacts under one name; one of them is shown.
    Set {
        members: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    There,
    /// It was made, and its blob is gone.
    Gone,
    NotRun,
}

/// The tree of one output of a unit. Of a set the member named `item` is shown, else the first.
pub fn lineage(graph: &Graph, cache: &Cache, (unit, output): (UnitIdx, &str), item: &str) -> Node {
    let mut resolver = Resolver::new(graph, cache, &[unit]);
    resolver.look_up();
    let mut walk = Walk { resolver, item, seen: HashSet::new() };
    walk.unit(output.to_owned(), unit, output)
}

struct Walk<'a> {
    resolver: Resolver<'a>,
    item: &'a str,
    seen: HashSet<UnitIdx>,
}

impl Walk<'_> {
    fn unit(&mut self, slot: String, unit: UnitIdx, output: &str) -> Node {
        let mut node = self.alone(slot, unit, output);
        let is_new = self.seen.insert(unit);
        if let NodeSource::Unit { is_repeated, .. } = &mut node.source {
            *is_repeated = !is_new;
        }
        if is_new {
            node.inputs = self.inputs(unit);
        }
        node
    }

    /// Without what it read.
    fn alone(&mut self, slot: String, unit: UnitIdx, output: &str) -> Node {
        let (graph, key) = (self.resolver.graph, self.resolver.key(unit));
        let records = self.resolver.cache.records();
        let found = self.resolver.known[unit].and_then(|record| records.output(record, output));
        let state = match found {
            None => NodeState::NotRun,
            Some((digest, size)) if self.resolver.cache.store().has(&digest, size) => NodeState::There,
            Some(_) => NodeState::Gone,
        };
        Node {
            slot,
            source: NodeSource::Unit { unit: graph.unit(unit).label(), key, is_repeated: false },
            digest: found.map(|(digest, _)| digest),
            size: found.map(|(_, size)| size),
            state,
            inputs: Vec::new(),
        }
    }

    /// What a unit reads, and what the units of its stage read that it goes on from, each once.
    fn inputs(&mut self, unit: UnitIdx) -> Vec<Node> {
        let graph = self.resolver.graph;
        let (mut own, mut epochs, mut earlier) = (Vec::new(), Vec::new(), Vec::new());
        let mut listed = HashSet::new();
        let mut next = Some(unit);
        while let Some(current) = next.take() {
            for &(slot, input) in graph.inputs(current) {
                let slot_name = graph.name_at(slot).to_owned();
                match input {
                    Input::Output { unit: below, name } if self.goes_on(current, below as usize) => {
                        self.seen.insert(below as usize);
                        epochs.push(self.alone(slot_name, below as usize, graph.name_at(name)));
                        next = Some(below as usize);
                    }
                    input if listed.insert((slot, input)) => {
                        let node = self.input(slot_name, input);
                        if current == unit { own.push(node) } else { earlier.push(node) }
                    }
                    _ => {}
                }
            }
        }
        [own, epochs, earlier].concat()
    }

    /// Both are of one training: the stage is the same, the item another.
    fn goes_on(&self, unit: UnitIdx, below: UnitIdx) -> bool {
        let graph = self.resolver.graph;
        let [unit, below] = [unit, below].map(|unit| graph.unit(unit));
        unit.stage == below.stage && unit.item != below.item
    }

    fn input(&mut self, slot: String, input: Input) -> Node {
        let graph = self.resolver.graph;
        match input {
            Input::Output { unit, name } => self.unit(slot, unit as usize, graph.name_at(name)),
            Input::Set(set) => self.set(slot, set as usize),
            Input::Content(content) => {
                let (digest, content) = graph.content(content);
                let (source, size) = match content {
                    Content::File(path) => (NodeSource::File { path: path.to_string_lossy().into_owned() }, None),
                    Content::Value(bytes) => (NodeSource::Value, Some(bytes.len() as u64)),
                };
                Node { slot, source, digest: Some(*digest), size, state: NodeState::There, inputs: Vec::new() }
            }
        }
    }

    fn set(&mut self, slot: String, set: SetIdx) -> Node {
        let graph = self.resolver.graph;
        let own = graph.members(set).find(|(item, _)| *item == self.item);
        let shown = own.or_else(|| graph.members(set).next());
        let inputs = shown.map(|(item, input)| self.input(item.to_owned(), input)).into_iter().collect();
        let digest = self.resolver.listing_digest(set);
        let state = if digest.is_some() { NodeState::There } else { NodeState::NotRun };
        let source = NodeSource::Set { members: graph.members(set).len() };
        Node { slot, source, digest, size: None, state, inputs }
    }
}

impl Node {
    /// For people: a line for each artifact, with the beginning of its digest, its size and the path of a file.
    pub fn text(&self) -> String {
        let mut lines = Vec::new();
        self.lines("", "", &mut lines);
        let [tree, bytes] =
            [0, 2].map(|column| lines.iter().map(|line: &[String; 4]| line[column].chars().count()).max().unwrap_or(0));
        let line = |[what, digest, size, note]: &[String; 4]| {
            let line = format!("{what:<tree$}  {digest:<12}  {size:>bytes$}  {note}");
            format!("{}\n", line.trim_end())
        };
        lines.iter().map(line).collect()
    }

    /// `first` stands before its own line, `rest` before those of what it read.
    fn lines(&self, first: &str, rest: &str, lines: &mut Vec<[String; 4]>) {
        let (what, mut note) = match &self.source {
            NodeSource::Unit { unit, key: _, is_repeated } => {
                (unit.clone(), if *is_repeated { "see above".to_owned() } else { String::new() })
            }
            NodeSource::File { path } => (path.rsplit('/').next().unwrap_or(path).to_owned(), path.clone()),
            NodeSource::Value => ("a small value".to_owned(), String::new()),
            NodeSource::Set { members: 1 } => ("the only one".to_owned(), String::new()),
            NodeSource::Set { members } => (format!("one of {members}"), String::new()),
        };
        match self.state {
            NodeState::There => {}
            NodeState::Gone => note = format!("its blob is gone {note}"),
            NodeState::NotRun => note = format!("has not run {note}"),
        }
        let digest = self.digest.map_or_else(|| "-".to_owned(), |digest| digest.short());
        let bytes = self.size.map_or_else(String::new, size);
        lines.push([format!("{first}{}: {what}", self.slot), digest, bytes, note]);
        for (at, input) in self.inputs.iter().enumerate() {
            let (branch, under) = if at + 1 < self.inputs.len() { ("├─ ", "│  ") } else { ("└─ ", "   ") };
            input.lines(&format!("{rest}{branch}"), &format!("{rest}{under}"), lines);
        }
    }
}
