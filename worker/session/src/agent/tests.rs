//! Against OpenSSH's own programs: they make the keys, list them, have them sign, and check the signatures.

use super::{Answers, KeyError, Keyring, Serving};
use crate::{Caller, LocalCaller, LocalOptions, SessionId, SshAgent, SshSource};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

struct Ground(tempfile::TempDir);

impl Ground {
    fn new(test: &str) -> Option<Ground> {
        let has = Command::new("ssh-keygen").arg("-?").output().is_ok();
        if !has {
            eprintln!("skipped: {test}: needs ssh-keygen");
            return None;
        }
        Some(Ground(tempfile::tempdir().expect("a folder")))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn key(&self, name: &str, args: &[&str]) -> PathBuf {
        let path = self.path(name);
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-C", &format!("comment of {name}"), "-f"]);
        succeed(command.arg(&path).args(args));
        path
    }
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

fn ring(paths: &[PathBuf]) -> Result<Arc<Keyring>, KeyError> {
    let mut ring = Keyring::default();
    paths.iter().try_for_each(|path| ring.add(path))?;
    Ok(Arc::new(ring))
}

/// What ssh-add says when it asks the agent at `socket`.
async fn ssh_add(socket: &Path, args: &'static [&'static str]) -> Output {
    let mut command = Command::new("ssh-add");
    command.env("SSH_AUTH_SOCK", socket).args(args);
    tokio::task::spawn_blocking(move || command.output().expect("it runs"))
        .await
        .expect("no panic")
}

/// Has the agent at `socket` sign by the key whose public half lies in `public`, and OpenSSH check it.
async fn sign_and_verify(socket: PathBuf, public: PathBuf) {
    tokio::task::spawn_blocking(move || {
        let folder = tempfile::tempdir().expect("a folder");
        let (data, allowed) = (folder.path().join("data"), folder.path().join("allowed"));
        std::fs::write(&data, "to be signed").expect("written");
        let key = std::fs::read_to_string(&public).expect("readable");
        std::fs::write(&allowed, format!("me {key}")).expect("written");
        let mut sign = Command::new("ssh-keygen");
        sign.env("SSH_AUTH_SOCK", socket)
            .args(["-Y", "sign", "-n", "test", "-f"]);
        succeed(sign.arg(&public).arg(&data));
        let mut verify = Command::new("ssh-keygen");
        verify
            .args(["-Y", "verify", "-I", "me", "-n", "test", "-f"])
            .arg(&allowed);
        verify.arg("-s").arg(folder.path().join("data.sig"));
        succeed(verify.stdin(std::fs::File::open(&data).expect("readable")));
    })
    .await
    .expect("no panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_kind_are_listed_and_signed_with() {
    let Some(ground) = Ground::new("keys_of_every_kind_are_listed_and_signed_with") else {
        return;
    };
    let none = ["-N", ""];
    let kinds: [(&str, &[&str]); 7] = [
        ("ed25519", &["-t", "ed25519"]),
        ("ecdsa256", &["-t", "ecdsa", "-b", "256"]),
        ("ecdsa384", &["-t", "ecdsa", "-b", "384"]),
        ("rsa", &["-t", "rsa", "-b", "2048"]),
        ("rsa-pkcs1", &["-t", "rsa", "-b", "3072", "-m", "PEM"]),
        ("rsa-pkcs8", &["-t", "rsa", "-b", "2048", "-m", "PKCS8"]),
        ("ecdsa-sec1", &["-t", "ecdsa", "-b", "256", "-m", "PEM"]),
    ];
    let keys: Vec<PathBuf> = kinds
        .iter()
        .map(|(name, kind)| ground.key(name, &[*kind, &none].concat()))
        .collect();
    let serving = Serving::start(Answers::Keys(ring(&keys).expect("all can be read"))).expect("served");
    let listed = ssh_add(serving.socket(), &["-l"]).await;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert_eq!(listed.lines().count(), keys.len(), "{listed}");
    assert!(listed.contains("comment of ed25519 (ED25519)"), "{listed}");
    for (name, _) in kinds {
        sign_and_verify(serving.socket().to_owned(), ground.path(&format!("{name}.pub"))).await;
    }
    // Nothing can be changed.
    let removed = ssh_add(serving.socket(), &["-D"]).await;
    assert!(!removed.status.success());
    assert_eq!(ssh_add(serving.socket(), &["-l"]).await.stdout, listed.as_bytes());
    let socket = serving.socket().to_owned();
    drop(serving);
    assert!(!socket.exists());
}

#[test]
fn what_cannot_be_used_is_told_apart() {
    let Some(ground) = Ground::new("what_cannot_be_used_is_told_apart") else {
        return;
    };
    let secret = ["-N", "a passphrase"];
    let locked = [
        ground.key("locked", &[&["-t", "ed25519"][..], &secret].concat()),
        ground.key(
            "locked-pem",
            &[&["-t", "rsa", "-b", "2048", "-m", "PEM"][..], &secret].concat(),
        ),
        ground.key(
            "locked-pkcs8",
            &[&["-t", "rsa", "-b", "2048", "-m", "PKCS8"][..], &secret].concat(),
        ),
    ];
    for path in locked {
        let refused = ring(&[path]);
        assert!(matches!(refused, Err(KeyError::Passphrase)), "{refused:?}");
    }
    let p521 = ground.key("p521", &["-t", "ecdsa", "-b", "521", "-N", ""]);
    let small = ground.key("small", &["-t", "rsa", "-b", "1024", "-N", ""]);
    for (path, expected) in [(p521, "nistp521"), (small, "less than 2048 bits")] {
        let refused = ring(&[path]).expect_err("not supported").to_string();
        assert!(refused.contains(expected), "{refused}");
    }
    let good = std::fs::read_to_string(ground.key("good", &["-t", "ed25519", "-N", ""])).expect("text");
    let file = |text: &str| {
        let path = ground.path("file");
        std::fs::write(&path, text).expect("written");
        ring(&[path])
    };
    assert!(matches!(file("hello\n"), Err(KeyError::NotAKey)));
    assert!(matches!(file(""), Err(KeyError::NotAKey)));
    assert!(matches!(file(&"x".repeat(200_000)), Err(KeyError::TooLarge)));
    for length in 40..good.len() - 20 {
        // Cut anywhere it is refused, and nothing panics.
        assert!(file(&good[..length]).is_err(), "{length}");
    }
    let lines: Vec<&str> = good.lines().collect();
    for at in 0..lines[1].len() {
        let mut line = lines[1].to_owned();
        line.replace_range(at..=at, "A");
        let _either = file(&[&[lines[0], &line], &lines[2..]].concat().join("\n"));
    }
    assert!(matches!(ring(&[ground.path("missing")]), Err(KeyError::Read(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_the_user_is_asked_but_not_changed() {
    let Some(ground) = Ground::new("an_agent_of_the_user_is_asked_but_not_changed") else {
        return;
    };
    let key = ground.key("key", &["-t", "ed25519", "-N", ""]);
    // Our own agent stands in for the user's: it answers what it is asked.
    let theirs = Serving::start(Answers::Keys(ring(&[key]).expect("readable"))).expect("served");
    let source = |raw| SshSource::Socket {
        path: theirs.socket().to_owned(),
        raw,
    };
    let options = LocalOptions {
        ssh: BTreeMap::from([
            ("default".to_owned(), source(false)),
            ("raw".to_owned(), source(true)),
        ]),
        ..LocalOptions::default()
    };
    let caller = LocalCaller::new(SessionId::new("test"), options);
    let agent = |id: &'static str| caller.ssh_agent(id);
    let filtered = agent("").await.expect("reachable").expect("forwarded");
    assert_ne!(SshAgent::socket(&filtered), theirs.socket());
    sign_and_verify(filtered.socket().to_owned(), ground.path("key.pub")).await;
    assert!(!ssh_add(filtered.socket(), &["-D"]).await.status.success());
    let raw = agent("raw").await.expect("reachable").expect("forwarded");
    assert_eq!(raw.socket(), theirs.socket());
    drop(theirs);
    let gone = agent("").await.expect_err("nobody listens").to_string();
    assert!(gone.contains("connect to ssh agent"), "{gone}");
}
