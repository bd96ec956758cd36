//! Variables in order: what RUN sees and what words are expanded with.
//!
//! The order is that of the last assignment, because it is part of an exec's bytes.

use std::collections::{BTreeMap, HashMap};

/// Variables, each once, in the order of their last assignment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Env {
    /// Each value with the number of its assignment.
    values: HashMap<String, (u64, String)>,
    order: BTreeMap<u64, String>,
    assignments: u64,
}

impl Env {
    /// Sets a variable; it becomes the last one.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.assignments += 1;
        let now = (self.assignments, value.to_owned());
        if let Some((before, _)) = self.values.insert(name.to_owned(), now) {
            self.order.remove(&before);
        }
        self.order.insert(self.assignments, name.to_owned());
    }

    /// Unsets a variable.
    pub(crate) fn remove(&mut self, name: &str) {
        if let Some((before, _)) = self.values.remove(name) {
            self.order.remove(&before);
        }
    }

    /// The value of a variable.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|(_, value)| value.as_str())
    }

    /// The variables that are set.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.order.values().map(String::as_str)
    }

    /// `NAME=value` for each.
    pub(crate) fn to_lines(&self) -> Vec<String> {
        let value = |name: &str| self.get(name).unwrap_or_default();
        self.order
            .values()
            .map(|name| format!("{name}={}", value(name)))
            .collect()
    }
}

/// A line of an image's environment as name and value.
pub(crate) fn split(line: &str) -> (&str, &str) {
    line.split_once('=').unwrap_or((line, ""))
}

/// Where the variables of an image's environment stand, so that setting many takes no time that grows with their number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// The first line of each name.
    first: HashMap<String, usize>,
    /// Lines looked at so far.
    seen: usize,
}

impl Places {
    /// Sets a variable in an image's environment: in its old place, or at the end.
    pub(crate) fn set(&mut self, env: &mut Vec<String>, name: &str, value: &str) {
        for (at, line) in env.iter().enumerate().skip(self.seen) {
            self.first.entry(split(line).0.to_owned()).or_insert(at);
        }
        let line = format!("{name}={value}");
        match self.first.get(name) {
            Some(at) => env[*at] = line,
            None => {
                self.first.insert(name.to_owned(), env.len());
                env.push(line);
            }
        }
        self.seen = env.len();
    }
}

#[cfg(test)]
mod tests {
    use super::{Env, Places};

    #[test]
    fn the_last_assignment_sets_the_place() {
        let mut env = Env::default();
        for (name, value) in [("A", "1"), ("B", "2"), ("A", "3")] {
            env.set(name, value);
        }
        assert_eq!(env.to_lines(), ["B=2", "A=3"]);
        let mut image = vec!["A=1".to_owned(), "B=2".to_owned()];
        let mut places = Places::default();
        places.set(&mut image, "A", "x=y");
        places.set(&mut image, "C", "");
        assert_eq!(image, ["A=x=y", "B=2", "C="]);
        image.push("D=1".into());
        places.set(&mut image, "D", "2");
        assert_eq!(image, ["A=x=y", "B=2", "C=", "D=2"]);
    }
}
