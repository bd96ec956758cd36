//! JSON as Go's encoder writes it: compact, keys in the given order, `&`, `<`, `>` escaped, empty values
//! left out. What is hashed has to be these bytes exactly, so no general encoder is used.

use std::fmt::Write as _;

/// An object under construction.
#[derive(Debug, Default)]
pub(crate) struct Object(String);

impl Object {
    /// Adds a member whose value is JSON already.
    pub(crate) fn raw(mut self, name: &str, json: impl AsRef<str>) -> Self {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        self.0.push_str(&string(name));
        self.0.push(':');
        self.0.push_str(json.as_ref());
        self
    }

    /// Adds a string unless it is empty.
    pub(crate) fn text(self, name: &str, value: &str) -> Self {
        if value.is_empty() {
            self
        } else {
            self.raw(name, string(value))
        }
    }

    /// Adds a number unless it is 0.
    pub(crate) fn signed(self, name: &str, value: i64) -> Self {
        if value == 0 {
            self
        } else {
            self.raw(name, value.to_string())
        }
    }

    /// Adds a number unless it is 0.
    pub(crate) fn unsigned(self, name: &str, value: u32) -> Self {
        self.signed(name, i64::from(value))
    }

    /// Adds `true`, or nothing.
    pub(crate) fn flag(self, name: &str, value: bool) -> Self {
        if value { self.raw(name, "true") } else { self }
    }

    /// Adds an array of values that are JSON already, unless it is empty.
    pub(crate) fn array(self, name: &str, values: impl IntoIterator<Item = String>) -> Self {
        let values: Vec<String> = values.into_iter().collect();
        if values.is_empty() {
            self
        } else {
            self.raw(name, format!("[{}]", values.join(",")))
        }
    }

    /// Adds an array of strings, unless it is empty.
    pub(crate) fn texts(self, name: &str, values: &[String]) -> Self {
        self.array(name, values.iter().map(|value| string(value)))
    }

    /// Adds an object, if there is one.
    pub(crate) fn object(self, name: &str, value: Option<Self>) -> Self {
        match value {
            Some(value) => self.raw(name, value.finish()),
            None => self,
        }
    }

    /// The object as text.
    pub(crate) fn finish(mut self) -> String {
        if self.0.is_empty() {
            self.0.push('{');
        }
        self.0.push('}');
        self.0
    }
}

/// A JSON string.
pub(crate) fn string(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{0}'..='\u{1f}' | '\u{2028}' | '\u{2029}' => {
                write!(out, "\\u{:04x}", c as u32).expect("a String grows as needed");
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A JSON array of strings; `[]` when there are none.
pub(crate) fn string_array(values: &[String]) -> String {
    let values: Vec<String> = values.iter().map(|value| string(value)).collect();
    format!("[{}]", values.join(","))
}

#[cfg(test)]
mod tests {
    use super::{Object, string};

    #[test]
    fn strings_are_escaped_as_go_does() {
        for (text, expected) in [
            ("a\"b\\c", r#""a\"b\\c""#),
            ("<a & b>", r#""\u003ca \u0026 b\u003e""#),
            ("\n\r\t\u{8}\u{c}\u{1}\u{7f}", "\"\\n\\r\\t\\b\\f\\u0001\u{7f}\""),
            ("é\u{2028}", "\"é\\u2028\""),
        ] {
            assert_eq!(string(text), expected);
        }
    }

    #[test]
    fn empty_values_are_left_out() {
        let object = Object::default()
            .text("a", "")
            .signed("b", 0)
            .flag("c", false)
            .texts("d", &[])
            .signed("e", -1);
        assert_eq!(object.finish(), r#"{"e":-1}"#);
        assert_eq!(Object::default().finish(), "{}");
    }
}
