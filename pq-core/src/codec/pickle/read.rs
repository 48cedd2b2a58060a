//! Reads a pickle: a stack machine without the opcodes that import or call.

use std::collections::HashMap;

use super::tree::{Id, Tree};
use super::{CodecError, MAX_VALUES, invalid, number, op, text, too_many, unsupported};

/// Maximum length of a module or class name in an error, in characters.
const MAX_NAME: usize = 80;

/// Decodes a pickle to JSON. As in Python, bytes after its end are ignored.
pub(super) fn json(pickle: &[u8]) -> Result<String, CodecError> {
    let mut machine = Machine::new(pickle)?;
    let root = machine.run()?;
    machine.tree.json(root)
}

struct Machine<'a> {
    rest: &'a [u8],
    tree: Tree,
    stack: Vec<Id>,
    /// The height of the stack at each open MARK.
    marks: Vec<usize>,
    /// A map, since a pickle may use any number as an index.
    memo: HashMap<u64, Id>,
    none: Id,
    no: Id,
    yes: Id,
}

impl<'a> Machine<'a> {
    fn new(pickle: &'a [u8]) -> Result<Self, CodecError> {
        let mut tree = Tree::default();
        let (none, no, yes) = (tree.scalar("null")?, tree.scalar("false")?, tree.scalar("true")?);
        let (stack, marks, memo) = (Vec::new(), Vec::new(), HashMap::new());
        Ok(Self { rest: pickle, tree, stack, marks, memo, none, no, yes })
    }

    fn run(&mut self) -> Result<Id, CodecError> {
        loop {
            let opcode = self.byte()?;
            match opcode {
                op::STOP => return self.pop(),
                op::PROTO if self.byte()? > 5 => {
                    return Err(CodecError::new("unsupported pickle: the protocol must be at most 5"));
                }
                op::PROTO => {}
                op::FRAME => self.frame()?,
                op::MARK | op::POP | op::POP_MARK | op::DUP => self.shuffle(opcode)?,
                op::PUT | op::BINPUT | op::LONG_BINPUT | op::MEMOIZE => self.put(opcode)?,
                op::GET | op::BINGET | op::LONG_BINGET => self.get(opcode)?,
                op::EMPTY_LIST | op::LIST | op::APPEND | op::APPENDS => self.list(opcode)?,
                op::EMPTY_DICT | op::DICT | op::SETITEM | op::SETITEMS => self.dict(opcode)?,
                op::EMPTY_TUPLE | op::TUPLE | op::TUPLE1 | op::TUPLE2 | op::TUPLE3 => self.tuple(opcode)?,
                op::GLOBAL | op::STACK_GLOBAL | op::INST => self.global(opcode)?,
                _ => self.scalar(opcode)?,
            }
        }
    }

    /// Checks that a frame ends within the pickle. Frames only serve to read ahead.
    fn frame(&mut self) -> Result<(), CodecError> {
        let length = self.number(8)?;
        match usize::try_from(length) {
            Ok(length) if length <= self.rest.len() => Ok(()),
            _ => Err(truncated()),
        }
    }

    fn shuffle(&mut self, opcode: u8) -> Result<(), CodecError> {
        match opcode {
            op::MARK => self.marks.push(self.stack.len()),
            op::POP if self.marks.last() == Some(&self.stack.len()) => {
                self.marks.pop();
            }
            op::POP => {
                self.pop()?;
            }
            op::DUP => self.stack.push(self.top()?),
            _ => {
                self.since_mark()?;
            }
        }
        Ok(())
    }

    fn put(&mut self, opcode: u8) -> Result<(), CodecError> {
        let place = match opcode {
            op::PUT => self.place()?,
            op::BINPUT => self.number(1)?,
            op::LONG_BINPUT => self.number(4)?,
            _ => self.memo.len() as u64,
        };
        if self.memo.len() >= MAX_VALUES {
            return Err(too_many());
        }
        self.memo.insert(place, self.top()?);
        Ok(())
    }

    fn get(&mut self, opcode: u8) -> Result<(), CodecError> {
        let place = match opcode {
            op::GET => self.place()?,
            op::BINGET => self.number(1)?,
            _ => self.number(4)?,
        };
        let known =
            self.memo.get(&place).ok_or_else(|| invalid("a reference to the memo must have a value"))?;
        self.stack.push(*known);
        Ok(())
    }

    fn list(&mut self, opcode: u8) -> Result<(), CodecError> {
        match opcode {
            op::EMPTY_LIST => self.stack.push(self.tree.list(Vec::new())?),
            op::LIST => {
                let items = self.since_mark()?;
                self.stack.push(self.tree.list(items)?);
            }
            op::APPEND => {
                let item = self.pop()?;
                self.tree.append(self.top()?, &[item])?;
            }
            _ => {
                let items = self.since_mark()?;
                self.tree.append(self.top()?, &items)?;
            }
        }
        Ok(())
    }

    fn dict(&mut self, opcode: u8) -> Result<(), CodecError> {
        let items = match opcode {
            op::EMPTY_DICT => Vec::new(),
            op::SETITEM => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.since_mark()?,
        };
        if matches!(opcode, op::EMPTY_DICT | op::DICT) {
            self.stack.push(self.tree.dict()?);
        }
        self.tree.set_items(self.top()?, &items)
    }

    fn tuple(&mut self, opcode: u8) -> Result<(), CodecError> {
        let mut items = match opcode {
            op::TUPLE => self.since_mark()?,
            op::TUPLE1 => vec![self.pop()?],
            op::TUPLE2 => vec![self.pop()?, self.pop()?],
            op::TUPLE3 => vec![self.pop()?, self.pop()?, self.pop()?],
            _ => Vec::new(),
        };
        if opcode != op::TUPLE {
            items.reverse();
        }
        self.stack.push(self.tree.tuple(items)?);
        Ok(())
    }

    fn scalar(&mut self, opcode: u8) -> Result<(), CodecError> {
        let known = match opcode {
            op::NONE => Some(self.none),
            op::NEWFALSE => Some(self.no),
            op::NEWTRUE => Some(self.yes),
            op::INT if self.rest.starts_with(b"00\n") => self.line().map(|_| Some(self.no))?,
            op::INT if self.rest.starts_with(b"01\n") => self.line().map(|_| Some(self.yes))?,
            _ => None,
        };
        let id = match known {
            Some(id) => id,
            None => {
                let json = self.scalar_json(opcode)?;
                self.tree.scalar(json)?
            }
        };
        self.stack.push(id);
        Ok(())
    }

    fn scalar_json(&mut self, opcode: u8) -> Result<String, CodecError> {
        match opcode {
            op::INT => number::integer(self.line()?),
            op::LONG => {
                let line = self.line()?;
                number::integer(line.strip_suffix(b"L").unwrap_or(line))
            }
            op::BININT1 => Ok(self.number(1)?.to_string()),
            op::BININT2 => Ok(self.number(2)?.to_string()),
            op::BININT => number::binary_integer(self.take(4)?),
            op::LONG1 => number::binary_integer(self.counted(1)?),
            op::LONG4 => number::binary_integer(self.counted(4)?),
            op::FLOAT => number::float(number::parse_float(self.line()?)?),
            op::BINFLOAT => number::float(f64::from_bits(self.number(8)?.swap_bytes())),
            op::STRING => text::repr(self.line()?),
            op::BINSTRING => text::ascii(self.counted(4)?),
            op::SHORT_BINSTRING => text::ascii(self.counted(1)?),
            op::UNICODE => text::raw_unicode(self.line()?),
            op::BINUNICODE => text::utf8(self.counted(4)?),
            op::SHORT_BINUNICODE => text::utf8(self.counted(1)?),
            op::BINUNICODE8 => text::utf8(self.counted(8)?),
            _ => Err(not_plain(opcode)),
        }
    }

    /// Refuses an import by its name.
    ///
    /// Accepts the functions of Python's copyreg that make objects: the pickle then names the class.
    fn global(&mut self, opcode: u8) -> Result<(), CodecError> {
        let (module, name) = if opcode == op::STACK_GLOBAL {
            let (name, module) = (self.pop()?, self.pop()?);
            let is_string = |id| self.tree.string(id).ok_or_else(|| invalid("a class name must be a string"));
            (printable(is_string(module)?), printable(is_string(name)?))
        } else {
            (self.name()?, self.name()?)
        };
        if opcode == op::INST || !matches!(module.as_str(), "copy_reg" | "copyreg") {
            return Err(unsupported(kind(&module, &name)));
        }
        self.stack.push(self.tree.helper()?);
        Ok(())
    }

    fn name(&mut self) -> Result<String, CodecError> {
        let line = self.line()?;
        Ok(printable(&String::from_utf8_lossy(&line[..line.len().min(4 * MAX_NAME)])))
    }

    fn top(&self) -> Result<Id, CodecError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or_else(|| invalid("the stack has too few values"))
    }

    fn pop(&mut self) -> Result<Id, CodecError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, CodecError> {
        let mark = self.marks.pop().ok_or_else(|| invalid("a mark is missing"))?;
        Ok(self.stack.drain(mark..).collect())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, CodecError> {
        let (byte, rest) = self.rest.split_first().ok_or_else(truncated)?;
        self.rest = rest;
        Ok(*byte)
    }

    /// Reads an unsigned little-endian number.
    fn number(&mut self, length: usize) -> Result<u64, CodecError> {
        Ok(self.take(length)?.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    /// Reads a length and as many bytes.
    ///
    /// Some lengths are signed in Python. A negative one is an error here too, since it is past the end.
    fn counted(&mut self, length: usize) -> Result<&'a [u8], CodecError> {
        let count = self.number(length)?;
        self.take(usize::try_from(count).map_err(|_| truncated())?)
    }

    fn line(&mut self) -> Result<&'a [u8], CodecError> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(truncated)?;
        let line = self.take(end)?;
        self.byte()?;
        Ok(line)
    }

    /// Reads an index of the memo in decimal text.
    fn place(&mut self) -> Result<u64, CodecError> {
        let place = std::str::from_utf8(self.line()?).ok().and_then(|line| line.parse().ok());
        place.ok_or_else(|| invalid("an index of the memo must be a number"))
    }
}

fn truncated() -> CodecError {
    invalid("it ends early")
}

/// Shortens a name for an error.
///
/// Reads only its first few hundred characters, since a pickle can refer to a long name many times.
fn printable(name: &str) -> String {
    let may = |char: &char| char.is_alphanumeric() || matches!(char, '_' | '.' | '<' | '>');
    name.chars().take(4 * MAX_NAME).filter(may).take(MAX_NAME).collect()
}

/// Describes the object that a pickle makes with this import.
fn kind(module: &str, name: &str) -> String {
    match (module, name) {
        ("__builtin__" | "builtins", "set") => "a set".to_owned(),
        ("__builtin__" | "builtins", "frozenset") => "a frozenset".to_owned(),
        ("__builtin__" | "builtins", "bytearray") => "a bytearray object".to_owned(),
        ("__builtin__" | "builtins", "bytes") => "a bytes object".to_owned(),
        ("__builtin__" | "builtins", "complex") => "a complex number".to_owned(),
        ("_codecs", "encode") => "perhaps a bytes object (a call of _codecs.encode)".to_owned(),
        _ => format!("an object of class {module}.{name}"),
    }
}

/// Returns the error for an opcode that plain data does not need.
fn not_plain(opcode: u8) -> CodecError {
    unsupported(match opcode {
        op::BINBYTES | op::SHORT_BINBYTES | op::BINBYTES8 => "a bytes object",
        op::BYTEARRAY8 => "a bytearray object",
        op::EMPTY_SET | op::ADDITEMS => "a set",
        op::FROZENSET => "a frozenset",
        op::REDUCE => "the result of a call (opcode REDUCE)",
        op::BUILD => "an object with a state (opcode BUILD)",
        op::OBJ => "an object (opcode OBJ)",
        op::NEWOBJ => "an object (opcode NEWOBJ)",
        op::NEWOBJ_EX => "an object (opcode NEWOBJ_EX)",
        op::PERSID | op::BINPERSID => "a persistent id",
        op::EXT1 | op::EXT2 | op::EXT4 => "an object of a registered extension",
        op::NEXT_BUFFER | op::READONLY_BUFFER => "an out-of-band buffer",
        _ => return invalid("it has an unknown opcode"),
    })
}
