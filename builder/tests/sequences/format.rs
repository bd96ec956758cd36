//! One sequence, as it is written: the fields of `sequences/README.md`. Whatever is written and unknown is an error.
use serde::Deserialize;
use std::collections::BTreeMap;
use toml::{Table, Value};

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sequence {
    /// What it shows, in a sentence.
    #[expect(dead_code, reason = "for people")]
    pub(crate) about: String,
    /// Which program asks so.
    #[expect(dead_code, reason = "for people")]
    pub(crate) client: String,
    /// What this machine must have; else it is skipped.
    #[serde(default)]
    pub(crate) needs: Vec<Need>,
    /// Files of the folder, by path.
    #[serde(default)]
    pub(crate) files: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) session: Vec<SessionOffer>,
    pub(crate) step: Vec<Step>,
    /// Files of the folder at the end, by path.
    #[serde(default)]
    pub(crate) then: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Need {
    /// Steps can be run, and there is a static busybox, which is put into `context/busybox`.
    Run,
    /// `docker-registry`, whose address is `${registry}`.
    Registry,
}

/// A session the client holds open to the end.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SessionOffer {
    pub(crate) id: String,
    /// Folders by their names in the build.
    #[serde(default)]
    pub(crate) dirs: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) secrets: BTreeMap<String, String>,
    /// Agents by id: sockets, at which somebody listens who never answers.
    #[serde(default)]
    pub(crate) ssh: BTreeMap<String, String>,
    /// Folders outputs are written into, by their numbers.
    #[serde(default)]
    pub(crate) into: BTreeMap<String, String>,
    /// Archives outputs are written to, by their numbers.
    #[serde(default)]
    pub(crate) archive: BTreeMap<String, String>,
}

/// One call.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    /// `Service/Method`; nothing where only an answer is waited for.
    pub(crate) call: Option<String>,
    /// Headers.
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, String>,
    /// The message's fields.
    #[serde(default)]
    pub(crate) ask: Table,
    /// It goes on beside the next ones, by this name.
    pub(crate) beside: Option<String>,
    /// The call that is waited for.
    pub(crate) answer_of: Option<String>,
    /// Parts of the answer for later: the first group of an expression over the printed answer, by name.
    #[serde(default)]
    pub(crate) keep: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) expect: Expect,
}

/// What is true of an answer: of all its messages, as they are printed.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Expect {
    /// gRPC's code; `Ok` if it is not said.
    pub(crate) code: Option<String>,
    /// The error's message has this.
    pub(crate) message: Option<String>,
    /// Expressions that are found.
    pub(crate) has: Vec<String>,
    /// Expressions that are not.
    pub(crate) lacks: Vec<String>,
    /// How many messages there are.
    pub(crate) messages: Option<usize>,
}

/// Puts values for `${name}` into all texts.
pub(crate) fn filled(value: &Value, values: &BTreeMap<String, String>) -> Value {
    match value {
        Value::String(text) => Value::String(fill(text, values)),
        Value::Array(all) => Value::Array(all.iter().map(|one| filled(one, values)).collect()),
        Value::Table(table) => {
            let fields = table.iter();
            Value::Table(
                fields
                    .map(|(key, one)| (fill(key, values), filled(one, values)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

/// Puts values for `${name}` into a text.
pub(crate) fn fill(text: &str, values: &BTreeMap<String, String>) -> String {
    let filled = values.iter().fold(text.to_owned(), |text, (name, value)| {
        text.replace(&format!("${{{name}}}"), value)
    });
    assert!(
        !filled.contains("${"),
        "{text:?} has a name nothing is known of: {filled:?}"
    );
    filled
}
