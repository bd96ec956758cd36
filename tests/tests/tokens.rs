//! A registry behind a token server, asked by a daemon for a client that keeps its password to itself.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use tests::{Daemon, Output, Program, Registry, TokenGate, User, fixtures, tool};

/// A user of the registry: a folder with Docker's configuration in it.
struct Client<'a> {
    folder: PathBuf,
    daemon: &'a Daemon,
    program: &'a Program,
}

impl Client<'_> {
    fn new<'a>(
        place: PathBuf,
        (daemon, program): (&'a Daemon, &'a Program),
        host: &str,
        shown: Option<&str>,
    ) -> Client<'a> {
        fs::create_dir_all(&place).expect("made");
        let auth = shown.map(|user| STANDARD.encode(user));
        let auths = auth.map_or_else(String::new, |auth| format!("\"{host}\":{{\"auth\":\"{auth}\"}}"));
        fs::write(place.join("config.json"), format!("{{\"auths\":{{{auths}}}}}")).expect("written");
        Client {
            folder: place,
            daemon,
            program,
        }
    }

    fn build(&self, dockerfile: &str, args: &[&str], env: &[(&str, &str)]) -> Output {
        let context = self.folder.join("context");
        fs::create_dir_all(&context).expect("made");
        fs::write(context.join("Dockerfile"), dockerfile).expect("written");
        let mut all = vec!["build", "--progress=plain"];
        all.extend(args);
        all.push(".");
        let own = ("DOCKER_CONFIG".to_owned(), self.folder.display().to_string());
        let mut env: Vec<(String, String)> = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        env.extend([own, self.daemon.variable()]);
        self.program.run(&context, &all, &env, b"").expect("it runs")
    }
}

#[test]
fn a_daemon_pulls_and_pushes_with_tokens_that_its_client_fetches() {
    if !(tool("docker-registry") && tool("skopeo")) {
        eprintln!("skipped: docker-registry and skopeo are needed");
        return;
    }
    let place = tempfile::Builder::new()
        .prefix("builder-tokens-")
        .tempdir()
        .expect("a temporary folder");
    let at = |name: &str| place.path().join(name);
    let registry = Registry::start(place.path());
    let user = "me:hunter2";
    let gate = TokenGate::start(&registry.address, &format!("Basic {}", STANDARD.encode(user)));
    let base = format!("oci:{}", fixtures().join("bases/busybox").display());
    let to = format!("docker://{}/private/busybox:1", registry.address);
    let copied = Command::new("skopeo")
        .args(["copy", "--quiet", "--dest-tls-verify=false", &base, &to])
        .status();
    assert!(copied.expect("skopeo starts").success());

    let program = Program::new(&at("root"), User::Same);
    let daemon = Daemon::start(&program, place.path()).expect("it serves");
    let both = (&daemon, &program);
    let dockerfile = |words: &str| {
        format!(
            "FROM {}/private/busybox:1\nRUN echo {words} > /made\n",
            gate.address
        )
    };
    let first = Client::new(at("first"), both, &gate.address, Some(user));
    let target = format!("{}/private/made:1", gate.address);
    let pushed = first.build(&dockerfile("first"), &["--push", "-t", &target], &[]);
    assert_eq!(pushed.code, 0, "{}", pushed.stderr);
    let scopes = [
        "repository:private/busybox:pull",
        "repository:private/made:pull,push",
    ];
    let mut given = gate.given();
    given.sort();
    given.dedup();
    assert!(
        scopes.iter().all(|scope| given.contains(&(*scope).to_owned())),
        "{given:?}"
    );
    assert!(
        at("first/.token_seed").exists(),
        "the client has a key for the registry"
    );

    // The same user's next build is given the same tokens by the daemon.
    let before = gate.given().len();
    let again = first.build(&dockerfile("second"), &["--push", "-t", &target], &[]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(gate.given().len(), before, "{:?}", gate.given());

    // Nobody else is: not one with another password, nor one without any.
    let other = Client::new(at("other"), both, &gate.address, Some("me:guessed"));
    let stranger = Client::new(at("stranger"), both, &gate.address, None);
    for client in [&other, &stranger] {
        let refused = client.build(&dockerfile("third"), &["--pull"], &[]);
        assert_ne!(refused.code, 0, "{}", refused.stderr);
        assert!(refused.stderr.contains("get a token"), "{}", refused.stderr);
        assert!(!refused.stderr.contains("guessed"), "{}", refused.stderr);
    }
    assert_eq!(gate.given().len(), before);

    // Who prefers to show the password may.
    let showing = Client::new(at("showing"), both, &gate.address, Some(user));
    let shown = [("BUILDKIT_NO_CLIENT_TOKEN", "1")];
    let shown = showing.build(&dockerfile("fourth"), &["--push", "-t", &target], &shown);
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    assert!(!at("showing/.token_seed").exists());
    assert!(
        gate.given().len() > before,
        "the daemon fetched tokens of its own"
    );
}
