//! Makes the calls of a sequence against a daemon of its own and looks at the answers.
//!
//! ```text
//! file ─▶ folder, registry, daemon ─▶ sessions ─▶ step by step: fill, call, keep, expect ─▶ files at the end
//! ```
use super::calls::{self, Answer, Results};
use super::format::{Expect, Need, Sequence, SessionOffer, Step, fill, filled};
use super::registry::Registry;
use super::support::{Client, Daemon, Session};
use api::gateway;
use regex::Regex;
use session::provider::Place;
use session::{LocalOptions, SecretSource, SshSource};
use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::Path;
use tokio::task::JoinHandle;
use toml::Value;

type Pending = JoinHandle<(Answer, Option<gateway::Result>)>;

/// Replays one file; answers why it was skipped, if it was.
pub(crate) async fn replay(text: &str) -> Option<&'static str> {
    let sequence: Sequence = toml::from_str(text).unwrap_or_else(|error| panic!("{error}"));
    if let Some(missing) = missing(&sequence.needs) {
        return Some(missing);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path();
    let mut values = BTreeMap::from([("folder".to_owned(), place.display().to_string())]);
    let mut registry = None;
    for need in &sequence.needs {
        match need {
            Need::Run => {
                std::fs::create_dir_all(place.join("context")).expect("made");
                std::fs::copy("/bin/busybox", place.join("context/busybox")).expect("copied");
            }
            Need::Registry => {
                let started = Registry::start(place);
                values.insert("registry".to_owned(), started.address.clone());
                registry = Some(started);
            }
        }
    }
    for (path, text) in &sequence.files {
        let path = place.join(path);
        std::fs::create_dir_all(path.parent().expect("it lies in the folder")).expect("made");
        std::fs::write(path, fill(text, &values)).expect("written");
    }
    let mut daemon = Daemon::start(place);
    let client = daemon.client().await;
    let mut sessions = Vec::new();
    let agents = sequence.session.iter().flat_map(|offer| offer.ssh.values());
    let _listening: Vec<UnixListener> = agents
        .map(|path| UnixListener::bind(place.join(path)).expect("bound"))
        .collect();
    for offer in &sequence.session {
        sessions.push(open(&client, place, offer).await);
    }
    let mut player = Player {
        client,
        values,
        results: Results::new(),
        pending: BTreeMap::new(),
    };
    for (number, step) in sequence.step.iter().enumerate() {
        player.step(number + 1, step).await;
    }
    let forgotten: Vec<_> = player.pending.keys().collect();
    assert!(forgotten.is_empty(), "nobody waited for {forgotten:?}");
    for session in &sessions {
        session.settle().await;
        session.cancel();
    }
    for (path, expected) in &sequence.then {
        let found = std::fs::read(place.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let found = String::from_utf8_lossy(&found).into_owned();
        assert_eq!(&found, expected, "{path}");
    }
    drop(registry);
    assert!(daemon.end(), "the daemon ends well");
    None
}

fn missing(needs: &[Need]) -> Option<&'static str> {
    let can_run = rustix::process::geteuid().is_root() && Path::new("/bin/busybox").exists();
    let has_registry = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|part| part.join("docker-registry").exists()));
    needs.iter().find_map(|need| match need {
        Need::Run if !can_run => Some("needs root and a static busybox"),
        Need::Registry if !has_registry => Some("needs docker-registry"),
        Need::Run | Need::Registry => None,
    })
}

async fn open(client: &Client, place: &Path, offer: &SessionOffer) -> Session {
    let below = |(name, path): (&String, &String)| (name.clone(), place.join(path));
    let secret = |(name, value): (&String, &String)| {
        let value = session::Secret::new(value.clone().into_bytes());
        (name.clone(), SecretSource::Value(value))
    };
    let agent = |(name, path): (&String, &String)| {
        let socket = SshSource::Socket {
            path: place.join(path),
            raw: false,
        };
        (name.clone(), socket)
    };
    let options = LocalOptions {
        dirs: offer.dirs.iter().map(below).collect(),
        secrets: offer.secrets.iter().map(secret).collect(),
        ssh: offer.ssh.iter().map(agent).collect(),
        ..LocalOptions::default()
    };
    let number = |text: &String| text.parse::<usize>().expect("outputs are numbered");
    let folders = offer.into.iter().map(|(name, path)| {
        let folder = Place::Dir {
            path: place.join(path),
            empties: false,
        };
        (number(name), folder)
    });
    let archives = offer.archive.iter().map(|(name, path)| {
        let file = std::fs::File::create(place.join(path)).expect("made");
        (number(name), Place::File(Box::new(file)))
    });
    let places = folders.chain(archives).collect();
    client.session_of(&offer.id, options, places).await
}

struct Player {
    client: Client,
    values: BTreeMap<String, String>,
    results: Results,
    pending: BTreeMap<String, Pending>,
}

impl Player {
    async fn step(&mut self, number: usize, step: &Step) {
        let (name, (answer, result)) = match (&step.call, &step.answer_of) {
            (Some(call), None) => {
                let Value::Table(ask) = filled(&Value::Table(step.ask.clone()), &self.values) else {
                    unreachable!("a table filled is a table")
                };
                let headers = step.headers.iter();
                let headers: BTreeMap<_, _> = headers
                    .map(|(key, value)| (key.clone(), fill(value, &self.values)))
                    .collect();
                let (channel, results) = (self.client.channel.clone(), self.results.clone());
                let (called, name) = (call.clone(), call.clone());
                let calling =
                    tokio::spawn(
                        async move { calls::call(&channel, &called, &headers, ask, &results).await },
                    );
                if let Some(beside) = &step.beside {
                    self.pending.insert(beside.clone(), calling);
                    return;
                }
                (name, calling.await.expect("no panic"))
            }
            (None, Some(beside)) => {
                let pending = self.pending.remove(beside);
                let pending = pending.unwrap_or_else(|| panic!("step {number}: no call goes on as {beside}"));
                (beside.clone(), pending.await.expect("no panic"))
            }
            _ => panic!("step {number}: it is a call, or the answer of one"),
        };
        let what = format!("step {number}, {name}");
        check(&what, &answer, &step.expect, &self.values);
        let text = answer.unwrap_or_default().join("\n");
        for (key, pattern) in &step.keep {
            let found = Regex::new(pattern).expect("an expression").captures(&text);
            let found = found.unwrap_or_else(|| panic!("{what}: {pattern} is not in {text}"));
            self.values.insert(key.clone(), found[1].to_owned());
        }
        if let Some(result) = result {
            for (number, id) in calls::refs(&result).into_iter().enumerate() {
                self.values.insert(format!("ref {number}"), id);
            }
            self.results.insert(number.to_string(), result.clone());
            self.results.insert("last".to_owned(), result);
        }
    }
}

fn check(what: &str, answer: &Answer, expect: &Expect, values: &BTreeMap<String, String>) {
    let code = answer
        .as_ref()
        .map_or_else(|status| format!("{:?}", status.code()), |_| "Ok".to_owned());
    let wanted = expect.code.as_deref().unwrap_or("Ok");
    let said = match answer {
        Ok(messages) => messages.join("\n"),
        Err(status) => calls::details(status),
    };
    assert_eq!(code, wanted, "{what}: {said}");
    if let Some(message) = &expect.message {
        assert!(
            said.contains(&fill(message, values)),
            "{what}: {message:?} is not in {said:?}"
        );
    }
    for (patterns, is_wanted) in [(&expect.has, true), (&expect.lacks, false)] {
        for pattern in patterns {
            let found = Regex::new(&fill(pattern, values)).expect("an expression");
            assert_eq!(found.is_match(&said), is_wanted, "{what}: {pattern} in {said}");
        }
    }
    if let (Some(count), Ok(messages)) = (expect.messages, answer) {
        assert_eq!(messages.len(), count, "{what}: {messages:#?}");
    }
}
