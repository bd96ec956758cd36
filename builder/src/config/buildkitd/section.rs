//! Reading a TOML table key by key, so that every key that is not asked for, or is no good, is told with its place.
//!
//! ```text
//! text ─▶ Section ─ bool, text, size, …, section ─▶ values
//!            └─ refuse, warn, finish (what is left over) ─▶ Findings
//! ```
//!
//! Names of keys are compared without regard to case, as BuildKit's reader of TOML does.
use super::sizes::{self, Space};
use std::cell::RefCell;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is to be told about a file, each with its line.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// These make the file unusable.
    pub(super) refused: Vec<String>,
    /// With these it is used.
    pub(super) warned: Vec<String>,
}

/// The file, and what was found in it so far.
pub(super) struct Reader<'t> {
    text: &'t str,
    found: RefCell<Findings>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str) -> Reader<'t> {
        Reader {
            text,
            found: RefCell::default(),
        }
    }

    pub(super) fn findings(self) -> Findings {
        self.found.into_inner()
    }

    /// `line 3, column 5`.
    fn place(&self, span: &Range<usize>) -> String {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!("line {line}, column {column}")
    }
}

/// One table of the file.
pub(super) struct Section<'r, 't> {
    reader: &'r Reader<'t>,
    path: String,
    table: DeTable<'t>,
}

type Value<'t> = Spanned<DeValue<'t>>;

impl<'r, 't> Section<'r, 't> {
    pub(super) fn new(reader: &'r Reader<'t>, path: String, table: DeTable<'t>) -> Section<'r, 't> {
        Section { reader, path, table }
    }

    fn name(&self, key: &str) -> String {
        match self.path.is_empty() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.path),
        }
    }

    fn take(&mut self, key: &str) -> Option<(Range<usize>, Value<'t>)> {
        let exact = self.table.keys().find(|name| name.get_ref() == key);
        let loose = || {
            self.table
                .keys()
                .find(|name| name.get_ref().eq_ignore_ascii_case(key))
        };
        let name = exact.or_else(loose)?.clone();
        let (name, value) = self.table.remove_entry(&name)?;
        Some((name.span(), value))
    }

    fn tell_refused(&self, key: &str, span: &Range<usize>, why: &str) {
        let text = format!("{}: {}: {why}", self.reader.place(span), self.name(key));
        self.reader.found.borrow_mut().refused.push(text);
    }

    fn tell_warned(&self, key: &str, span: &Range<usize>, why: &str) {
        let text = format!("{}: {}: {why}", self.reader.place(span), self.name(key));
        self.reader.found.borrow_mut().warned.push(text);
    }

    /// A key's value made into something; what cannot be is refused.
    fn read<T>(
        &mut self,
        key: &str,
        what: &str,
        make: impl FnOnce(&DeValue<'t>) -> Result<T, String>,
    ) -> Option<T> {
        let (_, value) = self.take(key)?;
        match make(value.get_ref()) {
            Ok(made) => Some(made),
            Err(reason) if reason.is_empty() => {
                let why = format!("must be {what}, not {}", value.get_ref().type_str());
                self.tell_refused(key, &value.span(), &why);
                None
            }
            Err(reason) => {
                self.tell_refused(key, &value.span(), &reason);
                None
            }
        }
    }

    pub(super) fn bool(&mut self, key: &str) -> Option<bool> {
        self.read(key, "true or false", |value| value.as_bool().ok_or_default())
    }

    /// A text; empty counts as not said.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let text = self.read(key, "a text", |value| {
            value.as_str().ok_or_default().map(str::to_owned)
        });
        text.filter(|text| !text.is_empty())
    }

    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    pub(super) fn texts(&mut self, key: &str) -> Option<Vec<String>> {
        self.read(key, "a list of texts", |value| {
            let list = value.as_array().ok_or_default()?;
            let one = |value: &Value<'t>| value.get_ref().as_str().ok_or_default().map(str::to_owned);
            list.iter().map(one).collect()
        })
    }

    pub(super) fn paths(&mut self, key: &str) -> Option<Vec<PathBuf>> {
        Some(self.texts(key)?.into_iter().map(PathBuf::from).collect())
    }

    /// A number that may not be negative.
    pub(super) fn count<T: TryFrom<i64>>(&mut self, key: &str) -> Option<T> {
        self.read(key, "a number", |value| {
            T::try_from(integer(value)?).map_err(|_| "out of range".to_owned())
        })
    }

    pub(super) fn space(&mut self, key: &str) -> Option<Space> {
        self.read(key, "a size", |value| match value.as_str() {
            Some(text) => sizes::space(text),
            None => sizes::bytes(integer(value)?),
        })
    }

    pub(super) fn duration(&mut self, key: &str) -> Option<Duration> {
        self.read(key, "a duration", |value| match value.as_str() {
            Some(text) => sizes::duration(text),
            None => u64::try_from(integer(value)?)
                .map(Duration::from_secs)
                .map_err(|_| "must not be negative".to_owned()),
        })
    }

    /// A table of texts, such as labels.
    pub(super) fn pairs(&mut self, key: &str) -> Vec<(String, String)> {
        let Some(mut section) = self.section(key) else {
            return Vec::new();
        };
        let names: Vec<String> = section
            .table
            .keys()
            .map(|name| name.get_ref().to_string())
            .collect();
        let pair = |name: String| {
            let value = section.read(&name, "a text", |value| {
                value.as_str().ok_or_default().map(str::to_owned)
            })?;
            Some((name, value))
        };
        names.into_iter().filter_map(pair).collect()
    }

    /// A table within this one.
    pub(super) fn section(&mut self, key: &str) -> Option<Section<'r, 't>> {
        let (_, value) = self.take(key)?;
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Some(Section::new(self.reader, self.name(key), table)),
            other => {
                self.tell_refused(key, &span, &format!("must be a table, not {}", other.type_str()));
                None
            }
        }
    }

    /// The tables of an array of tables.
    pub(super) fn sections(&mut self, key: &str) -> Option<Vec<Section<'r, 't>>> {
        let (_, value) = self.take(key)?;
        let span = value.span();
        let DeValue::Array(list) = value.into_inner() else {
            self.tell_refused(key, &span, "must be a list of tables");
            return None;
        };
        let mut sections = Vec::new();
        for (number, one) in list.into_iter().enumerate() {
            let span = one.span();
            match one.into_inner() {
                DeValue::Table(table) => {
                    let path = format!("{}[{number}]", self.name(key));
                    sections.push(Section::new(self.reader, path, table));
                }
                _ => self.tell_refused(key, &span, "must be a list of tables"),
            }
        }
        Some(sections)
    }

    /// The tables within this one, by name.
    pub(super) fn into_named(mut self) -> Vec<(String, Section<'r, 't>)> {
        let names: Vec<String> = self.table.keys().map(|name| name.get_ref().to_string()).collect();
        let one = |name: String| {
            let section = self.section(&name)?;
            Some((name, section))
        };
        names.into_iter().filter_map(one).collect()
    }

    /// Says that a key cannot be obeyed, if it is there and `is_meant` says that it asks for something.
    pub(super) fn refuse(&mut self, key: &str, is_meant: impl FnOnce(&DeValue<'t>) -> bool, why: &str) {
        if let Some((_, value)) = self.take(key)
            && is_meant(value.get_ref())
        {
            self.tell_refused(key, &value.span(), why);
        }
    }

    /// Says that a key has no effect, if it is there and asks for something.
    pub(super) fn warn(&mut self, key: &str, why: &str) {
        if let Some((span, value)) = self.take(key)
            && asks(value.get_ref())
        {
            self.tell_warned(key, &span, why);
        }
    }

    /// Refuses the value of a key that was read.
    pub(super) fn refuse_here(&self, key: &str, why: &str) {
        let name = self.name(key);
        self.reader
            .found
            .borrow_mut()
            .refused
            .push(format!("{name}: {why}"));
    }

    /// Warns about a key that was read.
    pub(super) fn warn_here(&self, key: &str, why: &str) {
        let name = self.name(key);
        self.reader
            .found
            .borrow_mut()
            .warned
            .push(format!("{name}: {why}"));
    }

    /// Tells of every key that nobody asked for.
    pub(super) fn finish(self) {
        for name in self.table.keys() {
            self.tell_warned(name.get_ref(), &name.span(), "no such key; it has no effect");
        }
    }
}

/// False for what says the same as nothing: `false`, an empty text, an empty list.
pub(super) fn asks(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::Boolean(value) => *value,
        DeValue::String(text) => !text.is_empty(),
        DeValue::Array(list) => !list.is_empty(),
        DeValue::Table(table) => !table.is_empty(),
        DeValue::Integer(number) => number.as_str() != "0",
        DeValue::Float(_) | DeValue::Datetime(_) => true,
    }
}

fn integer(value: &DeValue<'_>) -> Result<i64, String> {
    let number = value.as_integer().ok_or_default()?;
    i64::from_str_radix(number.as_str(), number.radix()).map_err(|error| error.to_string())
}

/// The wrong type: told with what was expected.
trait OrDefault<T> {
    fn ok_or_default(self) -> Result<T, String>;
}

impl<T> OrDefault<T> for Option<T> {
    fn ok_or_default(self) -> Result<T, String> {
        self.ok_or_else(String::new)
    }
}
