//! Pickles read as data: the object graph of a Python pickle, protocols 2 to 5, as far as state dicts need it.
//!
//! Nothing is ever executed: a call stays a node that names its function and arguments, and what it means is the
//! reader's business. The graph is flat (nodes by index), so that no nesting, cycle or sharing costs stack. Every
//! length is checked against the bytes that are there, and the number of opcodes is limited.
//!
//! Long for one file, a sixth of it tests: the machine is one `match` over opcodes and cannot be parted.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, bail, ensure};

use super::entry::NotACheckpoint;

/// A checkpoint of a thousand tensors has some 40,000.
const MAX_OPCODES: usize = 1 << 22;
/// So many are read of any file, and of a larger one as many more as it has this many bytes: an object takes some 60, and a
/// file may not ask for ten times its size.
const FREE_OPCODES: usize = 1 << 17;
const BYTES_PER_OPCODE: usize = 8;
const MAX_PROTOCOL: u8 = 5;

/// Index of a [`Node`].
pub(super) type NodeIdx = usize;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// Of more than eight bytes, little-endian.
    Long(&'a [u8]),
    Float(f64),
    Bytes(&'a [u8]),
    Text(&'a str),
    Tuple(Vec<NodeIdx>),
    /// Sets are lists too.
    List(Vec<NodeIdx>),
    /// Ordered or not; a later entry of an equal key counts.
    Dict(Vec<(NodeIdx, NodeIdx)>),
    /// Module and name.
    Global(&'a str, &'a str),
    /// What lies outside the pickle.
    Persistent(NodeIdx),
    /// The object a call would give, and what is put into it afterwards.
    Call {
        callable: NodeIdx,
        args: NodeIdx,
        more: Vec<NodeIdx>,
    },
}

/// One pickle.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    pub(super) nodes: Vec<Node<'a>>,
    pub(super) root: NodeIdx,
}

impl<'a> Pickle<'a> {
    /// Reads up to the pickle's end; what follows is left.
    pub(super) fn read(cursor: &mut Cursor<'a>) -> anyhow::Result<Self> {
        let mut machine =
            Machine { cursor, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: BTreeMap::new() };
        let limit = MAX_OPCODES.min(FREE_OPCODES + machine.cursor.n_file / BYTES_PER_OPCODE);
        for _ in 0..limit {
            let at = machine.cursor.at;
            let opcode = machine.cursor.byte()?;
            let step = machine.step(opcode);
            // A file that ends too early says where it ends.
            let damaged = |error: anyhow::Error| match error.is::<NotACheckpoint>() {
                true => error,
                false => error.context(format!("damaged pickle: opcode {opcode:#04x} at byte {at}")),
            };
            if let Some(root) = step.map_err(damaged)? {
                return Ok(Self { nodes: machine.nodes, root });
            }
        }
        bail!("a pickle of more than {limit} opcodes")
    }

    pub(super) fn node(&self, idx: NodeIdx) -> &Node<'a> {
        // All indices were made by the machine.
        self.nodes.get(idx).unwrap_or(&Node::None)
    }

    pub(super) fn text(&self, idx: NodeIdx) -> Option<&'a str> {
        match self.node(idx) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn int(&self, idx: NodeIdx) -> Option<i64> {
        match self.node(idx) {
            Node::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The members of a tuple or list.
    pub(super) fn members(&self, idx: NodeIdx) -> Option<&[NodeIdx]> {
        match self.node(idx) {
            Node::Tuple(members) | Node::List(members) => Some(members),
            _ => None,
        }
    }

    /// A tuple of integers.
    pub(super) fn ints(&self, idx: NodeIdx) -> Option<Vec<i64>> {
        self.members(idx)?.iter().map(|&member| self.int(member)).collect()
    }

    /// Module and name of what is called, and its arguments.
    pub(super) fn call(&self, idx: NodeIdx) -> Option<((&'a str, &'a str), &[NodeIdx])> {
        let Node::Call { callable, args, more: _ } = self.node(idx) else { return None };
        let Node::Global(module, name) = self.node(*callable) else { return None };
        Some(((module, name), self.members(*args).unwrap_or_default()))
    }

    /// Something outside the pickle is part of this object. `seen` holds what was looked at before, in vain.
    pub(super) fn reaches_outside(&self, idx: NodeIdx, seen: &mut HashSet<NodeIdx>) -> bool {
        let mut left = vec![idx];
        while let Some(idx) = left.pop() {
            if !seen.insert(idx) {
                continue;
            }
            match self.node(idx) {
                Node::Persistent(_) => return true,
                Node::Tuple(members) | Node::List(members) => left.extend(members),
                Node::Dict(entries) => left.extend(entries.iter().flat_map(|&(key, value)| [key, value])),
                Node::Call { callable, args, more } => left.extend(more.iter().chain([callable, args])),
                Node::None | Node::Bool(_) | Node::Int(_) | Node::Long(_) | Node::Float(_) => {}
                Node::Bytes(_) | Node::Text(_) | Node::Global(..) => {}
            }
        }
        false
    }
}

/// The stack machine a pickle is written for.
struct Machine<'c, 'a> {
    cursor: &'c mut Cursor<'a>,
    nodes: Vec<Node<'a>>,
    stack: Vec<NodeIdx>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: BTreeMap<u32, NodeIdx>,
}

impl<'a> Machine<'_, 'a> {
    /// One opcode, under the names of Python's `pickletools`; gives the root at the end.
    fn step(&mut self, opcode: u8) -> anyhow::Result<Option<NodeIdx>> {
        let node = match opcode {
            0x80 => {
                let protocol = self.cursor.byte()?;
                ensure!(protocol <= MAX_PROTOCOL, "protocol {protocol}");
                return Ok(None);
            }
            0x95 => return self.cursor.take(8).map(|_| None), // FRAME
            b'.' => return self.pop().map(Some),              // STOP
            b'(' => {
                self.marks.push(self.stack.len()); // MARK
                return Ok(None);
            }
            b'0' if self.marks.last() == Some(&self.stack.len()) => return Ok(self.marks.pop().and(None)),
            b'0' => return self.pop().map(|_| None),        // POP
            b'1' => return self.since_mark().map(|_| None), // POP_MARK
            b'2' => {
                let top = self.top()?; // DUP
                self.stack.push(top);
                return Ok(None);
            }
            b'q' | b'r' | 0x94 => {
                let place = match opcode {
                    b'q' => u32::from(self.cursor.byte()?), // BINPUT
                    b'r' => self.cursor.u32()?,             // LONG_BINPUT
                    _ => self.memo.len() as u32,            // MEMOIZE
                };
                let top = self.top()?;
                self.memo.insert(place, top);
                return Ok(None);
            }
            b'h' | b'j' => {
                let place = if opcode == b'h' { u32::from(self.cursor.byte()?) } else { self.cursor.u32()? };
                let found = *self.memo.get(&place).context("nothing was remembered there")?; // BINGET, LONG_BINGET
                self.stack.push(found);
                return Ok(None);
            }
            b'a' | b'e' | 0x90 => {
                let items = if opcode == b'a' { vec![self.pop()?] } else { self.since_mark()? };
                return self.append(items).map(|()| None); // APPEND, APPENDS, ADDITEMS
            }
            b's' | b'u' => {
                let items = if opcode == b's' { self.pops(2)? } else { self.since_mark()? };
                return self.set_items(&items).map(|()| None); // SETITEM, SETITEMS
            }
            b'b' => {
                let state = self.pop()?; // BUILD; attributes of a dict mean nothing here
                let top = self.top()?;
                if let Some(Node::Call { more, .. }) = self.nodes.get_mut(top) {
                    more.push(state);
                }
                return Ok(None);
            }
            b'R' | 0x81 => self.reduce()?, // REDUCE, NEWOBJ
            0x92 => {
                let kwargs = self.pop()?; // NEWOBJ_EX
                let args = self.pop()?;
                Node::Call { callable: self.pop()?, args, more: vec![kwargs] }
            }
            b'Q' => Node::Persistent(self.pop()?), // BINPERSID
            b'c' => Node::Global(self.cursor.line()?, self.cursor.line()?),
            0x93 => {
                let names = self.pops(2)?; // STACK_GLOBAL
                let text = |idx: &NodeIdx| match self.nodes.get(*idx) {
                    Some(Node::Text(text)) => Ok(*text),
                    _ => bail!("a name that is no text"),
                };
                Node::Global(text(&names[0])?, text(&names[1])?)
            }
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'K' => Node::Int(i64::from(self.cursor.byte()?)),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(self.cursor.array()?))),
            b'J' => Node::Int(i64::from(i32::from_le_bytes(self.cursor.array()?))),
            0x8a => {
                let n = usize::from(self.cursor.byte()?); // LONG1
                long(self.cursor.take(n)?)
            }
            0x8b => {
                let n = self.cursor.u32()?; // LONG4
                long(self.cursor.take(n as usize)?)
            }
            b'G' => Node::Float(f64::from_be_bytes(self.cursor.array()?)),
            b'X' | 0x8c | 0x8d => {
                let bytes = self.counted(opcode, (0x8c, b'X'))?; // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
                Node::Text(std::str::from_utf8(bytes)?)
            }
            b'U' | b'T' => {
                let bytes = self.counted(opcode, (b'U', b'T'))?; // strings of Python 2
                std::str::from_utf8(bytes).map_or(Node::Bytes(bytes), Node::Text)
            }
            b'C' | b'B' | 0x8e | 0x96 => Node::Bytes(self.counted(opcode, (b'C', b'B'))?),
            b')' => Node::Tuple(Vec::new()),
            b't' | 0x91 => Node::Tuple(self.since_mark()?), // TUPLE, FROZENSET
            0x85..=0x87 => Node::Tuple(self.pops(usize::from(opcode - 0x84))?),
            b']' | 0x8f => Node::List(Vec::new()), // EMPTY_LIST, EMPTY_SET
            b'l' => Node::List(self.since_mark()?),
            b'}' => Node::Dict(Vec::new()),
            b'd' => {
                let items = self.since_mark()?; // DICT
                Node::Dict(pairs(&items)?)
            }
            _ => bail!("it is not read"),
        };
        self.nodes.push(node);
        self.stack.push(self.nodes.len() - 1);
        Ok(None)
    }

    /// Bytes after their length, of one, four or eight bytes by the opcode.
    fn counted(&mut self, opcode: u8, (one, four): (u8, u8)) -> anyhow::Result<&'a [u8]> {
        let n = match opcode {
            _ if opcode == one => u64::from(self.cursor.byte()?),
            _ if opcode == four => u64::from(self.cursor.u32()?),
            _ => u64::from_le_bytes(self.cursor.array()?),
        };
        self.cursor.take(usize::try_from(n).unwrap_or(usize::MAX))
    }

    fn top(&self) -> anyhow::Result<NodeIdx> {
        self.stack.last().copied().context("the stack is empty")
    }

    fn pop(&mut self) -> anyhow::Result<NodeIdx> {
        let floor = self.marks.last().copied().unwrap_or(0);
        ensure!(floor < self.stack.len(), "the stack is empty");
        self.stack.pop().context("the stack is empty")
    }

    /// The topmost `n`, in the order they were pushed.
    fn pops(&mut self, n: usize) -> anyhow::Result<Vec<NodeIdx>> {
        let mut items: Vec<NodeIdx> = (0..n).map(|_| self.pop()).collect::<Result<_, _>>()?;
        items.reverse();
        Ok(items)
    }

    fn since_mark(&mut self) -> anyhow::Result<Vec<NodeIdx>> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len()).context("no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, items: Vec<NodeIdx>) -> anyhow::Result<()> {
        let top = self.top()?;
        match self.nodes.get_mut(top) {
            Some(Node::List(members) | Node::Call { more: members, .. }) => members.extend(items),
            _ => bail!("nothing can be appended there"),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[NodeIdx]) -> anyhow::Result<()> {
        let top = self.top()?;
        match self.nodes.get_mut(top) {
            Some(Node::Dict(entries)) => entries.extend(pairs(items)?),
            Some(Node::Call { more, .. }) => more.extend(items),
            _ => bail!("nothing can be set there"),
        }
        Ok(())
    }

    /// A call stays a call, but for that of an ordered dict.
    fn reduce(&mut self) -> anyhow::Result<Node<'a>> {
        let args = self.pop()?;
        let callable = self.pop()?;
        let node = |idx: NodeIdx| self.nodes.get(idx);
        let members = |idx: NodeIdx| match node(idx) {
            Some(Node::Tuple(members) | Node::List(members)) => Some(members),
            _ => None,
        };
        if node(callable) == Some(&Node::Global("collections", "OrderedDict")) {
            let entries = match members(args).map(Vec::as_slice) {
                Some([]) => Some(Vec::new()),
                // Python 2 gives the entries, each a list of two.
                Some([list]) => members(*list).and_then(|list| {
                    list.iter()
                        .map(|&entry| Some(<[_; 2]>::try_from(members(entry)?.as_slice()).ok()?.into()))
                        .collect()
                }),
                _ => None,
            };
            return Ok(Node::Dict(entries.context("an ordered dict of something else than pairs")?));
        }
        Ok(Node::Call { callable, args, more: Vec::new() })
    }
}

fn pairs(items: &[NodeIdx]) -> anyhow::Result<Vec<(NodeIdx, NodeIdx)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    ensure!(rest.is_empty(), "a key without a value");
    Ok(pairs.iter().map(|&pair| pair.into()).collect())
}

/// An integer of any length, little-endian, signed.
fn long(bytes: &[u8]) -> Node<'_> {
    if 8 < bytes.len() {
        return Node::Long(bytes);
    }
    let is_negative = bytes.last().is_some_and(|last| 128 <= *last);
    let mut whole = if is_negative { [255; 8] } else { [0; 8] };
    whole[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(whole))
}

/// A place in bytes that never leaves them.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
    /// Bytes of the whole file.
    n_file: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, n_file: bytes.len() }
    }

    /// In a part of a file of so many bytes.
    pub(super) fn within(bytes: &'a [u8], n_file: usize) -> Self {
        Self { n_file, ..Self::new(bytes) }
    }

    pub(super) fn take(&mut self, n: usize) -> anyhow::Result<&'a [u8]> {
        let taken = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end));
        let Some(taken) = taken else { return Err(NotACheckpoint::cut_short(self.bytes.len())) };
        self.at += n;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn byte(&mut self) -> anyhow::Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> anyhow::Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> anyhow::Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Text up to a line break.
    fn line(&mut self) -> anyhow::Result<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let n = rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
        let line = self.take(n)?;
        self.take(1)?;
        Ok(std::str::from_utf8(line)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> anyhow::Result<Pickle<'_>> {
        Pickle::read(&mut Cursor::new(bytes))
    }

    #[test]
    fn values_of_one_opcode() {
        let magic = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
        #[rustfmt::skip]
        let cases: [(&[u8], Node<'_>); 15] = [
            (b"\x80\x02N.",                      Node::None),
            (b"\x88.",                           Node::Bool(true)),
            (b"K\xff.",                          Node::Int(255)),
            (b"M\xff\xff.",                      Node::Int(65535)),
            (b"J\xfe\xff\xff\xff.",              Node::Int(-2)),
            (b"\x8a\x00.",                       Node::Int(0)),
            (b"\x8a\x01\xff.",                   Node::Int(-1)),
            (b"\x8a\x02\xff\x00.",               Node::Int(255)),
            (b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", Node::Long(magic)),
            (b"G\x3f\xf8\0\0\0\0\0\0.",         Node::Float(1.5)),
            (b"X\x02\0\0\0ab.",                 Node::Text("ab")),
            (b"\x8c\x02ab.",                     Node::Text("ab")),
            (b"U\x02ab.",                        Node::Text("ab")),
            (b"U\x01\xff.",                      Node::Bytes(b"\xff")),
            (b"cmodule\nname\n.",                Node::Global("module", "name")),
        ];
        for (bytes, expected) in cases {
            let pickle = read(bytes).unwrap();
            assert_eq!(*pickle.node(pickle.root), expected, "{bytes:?}");
            // One byte less is never enough.
            assert!(read(&bytes[..bytes.len() - 1]).is_err());
        }
    }

    #[test]
    fn objects_are_shared_and_calls_are_not_made() {
        // {"a": f(1), "b": the same}, the dict remembered before it was filled
        let pickle = read(b"\x80\x04}\x94(\x8c\x01acos\nsystem\nK\x01\x85R\x94\x8c\x01bh\x01u.").unwrap();
        let Node::Dict(entries) = pickle.node(pickle.root) else { panic!("{pickle:?}") };
        let keys: Vec<_> = entries.iter().map(|(key, _)| pickle.text(*key).unwrap()).collect();
        assert_eq!((keys, entries[0].1), (vec!["a", "b"], entries[1].1));
        let (function, args) = pickle.call(entries[0].1).unwrap();
        assert_eq!((function, pickle.int(args[0])), (("os", "system"), Some(1)));
        assert!(!pickle.reaches_outside(pickle.root, &mut HashSet::new()));
        // A list that holds itself and something outside.
        let pickle = read(b"\x80\x02]q\x00(h\x00X\x01\0\0\0aQe.").unwrap();
        assert!(pickle.reaches_outside(pickle.root, &mut HashSet::new()));
    }

    #[test]
    fn hostile_pickles_are_errors() {
        #[rustfmt::skip]
        let cases: [(&str, &[u8]); 11] = [
            ("empty stack",      b"\x80\x02."),
            ("below the mark",   b"K\x01(."),
            ("no mark",          b"K\x01t."),
            ("odd items",        b"}(K\x01u."),
            ("append to none",   b"NK\x01a."),
            ("not remembered",   b"h\x05."),
            ("protocol",         b"\x80\x09N."),
            ("length of 2^64",   b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff."),
            ("length of 2^32",   b"X\xff\xff\xff\xff."),
            ("an unknown opcode", b"\xee."),
            ("ordered nonsense", b"ccollections\nOrderedDict\nK\x01\x85R."),
        ];
        for (name, bytes) in cases {
            assert!(read(bytes).is_err(), "{name}");
        }
        // Deep nesting costs no stack; a pickle without end is left.
        let deep = [&b"]".repeat(50_000)[..], &b"a".repeat(49_999), b"."].concat();
        let deep = read(&deep).unwrap();
        assert!(!deep.reaches_outside(deep.root, &mut HashSet::new()));
        assert!(read(&b"N0".repeat(MAX_OPCODES)).is_err());
    }
}
