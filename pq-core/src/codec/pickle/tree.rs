//! The values of a pickle in an arena.
//!
//! No value contains another, so building and dropping do not recurse. A value with several references exists once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::{
    CodecError, MAX_DEPTH, MAX_JSON_BYTES, MAX_VALUES, invalid, too_deep, too_large, too_many, unsupported,
};

/// The index of a value in the arena.
pub(super) type Id = u32;

enum Node {
    /// A string, a number, a bool or `None`, as JSON.
    Scalar(Box<str>),
    List(Vec<Id>),
    Tuple(Box<[Id]>),
    /// Scalar keys and their values.
    Dict(Vec<(Id, Id)>),
    /// A function that makes objects of a class that is not known yet.
    Helper,
}

/// The values, and an index of the dicts' keys.
#[derive(Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    /// Equal keys have one number. It is cached by the value's index, so that a long key is compared only once even if
    /// many dicts share it.
    key_by_id: HashMap<Id, u32>,
    key_by_text: HashMap<String, u32>,
    positions: HashMap<(Id, u32), usize>,
}

impl Tree {
    pub(super) fn scalar(&mut self, json: impl Into<Box<str>>) -> Result<Id, CodecError> {
        self.add(Node::Scalar(json.into()))
    }

    pub(super) fn list(&mut self, items: Vec<Id>) -> Result<Id, CodecError> {
        self.add(Node::List(items))
    }

    pub(super) fn tuple(&mut self, items: Vec<Id>) -> Result<Id, CodecError> {
        self.add(Node::Tuple(items.into()))
    }

    pub(super) fn dict(&mut self) -> Result<Id, CodecError> {
        self.add(Node::Dict(Vec::new()))
    }

    pub(super) fn helper(&mut self) -> Result<Id, CodecError> {
        self.add(Node::Helper)
    }

    fn add(&mut self, node: Node) -> Result<Id, CodecError> {
        if self.nodes.len() >= MAX_VALUES {
            return Err(too_many());
        }
        let id = Id::try_from(self.nodes.len()).map_err(|_| too_many())?;
        self.nodes.push(node);
        Ok(id)
    }

    /// Returns the JSON of a string.
    pub(super) fn string(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Scalar(json) if json.starts_with('"') => Some(json),
            _ => None,
        }
    }

    pub(super) fn append(&mut self, list: Id, items: &[Id]) -> Result<(), CodecError> {
        match &mut self.nodes[list as usize] {
            Node::List(all) => {
                all.extend_from_slice(items);
                Ok(())
            }
            _ => Err(invalid("it can append only to a list")),
        }
    }

    /// Sets alternating keys and values. An existing key keeps its position.
    pub(super) fn set_items(&mut self, dict: Id, items: &[Id]) -> Result<(), CodecError> {
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(invalid("each key of a dict must have a value"));
        };
        for &[key, value] in pairs {
            let number = self.key_number(key)?;
            let Node::Dict(entries) = &mut self.nodes[dict as usize] else {
                return Err(invalid("it can set keys only of a dict"));
            };
            match self.positions.entry((dict, number)) {
                Entry::Occupied(position) => entries[*position.get()].1 = value,
                Entry::Vacant(position) => {
                    position.insert(entries.len());
                    entries.push((key, value));
                }
            }
        }
        Ok(())
    }

    fn key_number(&mut self, key: Id) -> Result<u32, CodecError> {
        if let Some(number) = self.key_by_id.get(&key) {
            return Ok(*number);
        }
        let mut text = String::new();
        self.push_key(key, &mut text)?;
        let next = u32::try_from(self.key_by_text.len()).map_err(|_| too_many())?;
        let number = *self.key_by_text.entry(text).or_insert(next);
        self.key_by_id.insert(key, number);
        Ok(number)
    }

    /// Returns the JSON of a key. If it is not a string, its JSON is quoted, as `json.dumps` does.
    fn push_key(&self, key: Id, out: &mut String) -> Result<(), CodecError> {
        match self.node(key) {
            Node::Scalar(json) if json.starts_with('"') => push(out, json),
            Node::Scalar(json) => {
                push(out, "\"")?;
                push(out, json)?;
                push(out, "\"")
            }
            Node::Tuple(_) => Err(unsupported("a dict key that is a tuple")),
            _ => Err(invalid("a dict key must be hashable")),
        }
    }

    /// Returns the JSON of a value.
    pub(super) fn json(&self, root: Id) -> Result<String, CodecError> {
        let mut out = String::new();
        self.push_value(root, &mut Vec::new(), &mut out)?;
        Ok(out)
    }

    /// Every call writes at least one byte, so the limit on bytes bounds the time too. The limit on the path bounds the
    /// recursion.
    fn push_value(&self, id: Id, path: &mut Vec<Id>, out: &mut String) -> Result<(), CodecError> {
        match self.node(id) {
            Node::Scalar(json) => return push(out, json),
            Node::Helper => return Err(unsupported("a function of Python's copyreg module")),
            _ if path.contains(&id) => return Err(unsupported("a list or dict that contains itself")),
            _ if path.len() >= MAX_DEPTH => return Err(too_deep()),
            _ => path.push(id),
        }
        match self.node(id) {
            Node::Dict(entries) => self.push_dict(entries, path, out)?,
            Node::List(items) => self.push_array(items, path, out)?,
            Node::Tuple(items) => self.push_array(items, path, out)?,
            Node::Scalar(_) | Node::Helper => {}
        }
        path.pop();
        Ok(())
    }

    fn push_array(&self, items: &[Id], path: &mut Vec<Id>, out: &mut String) -> Result<(), CodecError> {
        push(out, "[")?;
        for (index, item) in items.iter().enumerate() {
            push(out, if index == 0 { "" } else { "," })?;
            self.push_value(*item, path, out)?;
        }
        push(out, "]")
    }

    fn push_dict(
        &self,
        entries: &[(Id, Id)],
        path: &mut Vec<Id>,
        out: &mut String,
    ) -> Result<(), CodecError> {
        push(out, "{")?;
        for (index, (key, value)) in entries.iter().enumerate() {
            push(out, if index == 0 { "" } else { "," })?;
            self.push_key(*key, out)?;
            push(out, ":")?;
            self.push_value(*value, path, out)?;
        }
        push(out, "}")
    }

    fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }
}

fn push(out: &mut String, text: &str) -> Result<(), CodecError> {
    if out.len() + text.len() > MAX_JSON_BYTES {
        return Err(too_large());
    }
    out.push_str(text);
    Ok(())
}
