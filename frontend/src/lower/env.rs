//! Variables in order: what RUN sees and what words are expanded with.
//!
//! The order is that of the last assignment, because it is part of an exec's bytes.

/// Variables, each once, in the order of their last assignment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Env(Vec<(String, String)>);

impl Env {
    /// Sets a variable; it becomes the last one.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.0.push((name.to_owned(), value.to_owned()));
    }

    /// Unsets a variable.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }

    /// The value of a variable.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The variables that are set.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// `NAME=value` for each.
    pub(crate) fn to_lines(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }
}

/// A line of an image's environment as name and value.
pub(crate) fn split(line: &str) -> (&str, &str) {
    line.split_once('=').unwrap_or((line, ""))
}

/// Sets a variable in an image's environment: in its old place, or at the end.
pub(crate) fn set_in_image(env: &mut Vec<String>, name: &str, value: &str) {
    let line = format!("{name}={value}");
    match env.iter_mut().find(|known| split(known).0 == name) {
        Some(known) => *known = line,
        None => env.push(line),
    }
}

#[cfg(test)]
mod tests {
    use super::{Env, set_in_image};

    #[test]
    fn the_last_assignment_sets_the_place() {
        let mut env = Env::default();
        for (name, value) in [("A", "1"), ("B", "2"), ("A", "3")] {
            env.set(name, value);
        }
        assert_eq!(env.to_lines(), ["B=2", "A=3"]);
        let mut image = vec!["A=1".to_owned(), "B=2".to_owned()];
        set_in_image(&mut image, "A", "x=y");
        set_in_image(&mut image, "C", "");
        assert_eq!(image, ["A=x=y", "B=2", "C="]);
    }
}
