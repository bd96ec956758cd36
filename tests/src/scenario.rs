//! One folder of `fixtures/scenarios`: a Dockerfile, a context, what is asked, what must come out.
//!
//! ```text
//! <area>/<case>/Dockerfile          context/           scenario.toml
//!               expected/tree.txt   config.json        history.txt     (of the last build that succeeds)
//! ```
//!
//! A case with `[serve]` has a web server, `{server}`, for the files of its folder `serve` and for git repositories.
//!
//! Each case gets a copy of its folder and a root of its own. `busybox` is the base of `fixtures/bases`. In arguments,
//! `{dir}` is the copy, `{fixtures}` the project's folder, `{out}` a folder for results.
//!
//! With `UPDATE_EXPECTED=1` in the environment, files under `expected/` that exist are written anew instead of compared;
//! the difference is for a person to judge.
use crate::server::{Serve, Server};
use crate::{Daemon, Image, Leftovers, Output, Program, Steps, User, fixtures, is_root};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long a daemon may need to put away what a called-off step was at.
const LAST_HANDS: Duration = Duration::from_secs(10);

/// What `scenario.toml` says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    /// What the case shows, in one sentence.
    about: String,
    /// Runs as an ordinary user; skipped where the tests are not root.
    #[serde(default)]
    ordinary_user: bool,
    /// Shows what only root may: limits without a delegated group, device nodes, a bridge. Skipped for others.
    #[serde(default)]
    root: bool,
    /// Runs as root that may not mount; skipped where the tests are not root.
    #[serde(default)]
    container_root: bool,
    /// That user may use `/dev/net/tun`, as distributions have it.
    #[serde(default)]
    tun: bool,
    /// That user has no sub ids.
    #[serde(default)]
    no_sub_ids: bool,
    /// Programs that must be installed, or `no <path>` that must not be there; skipped by name else.
    #[serde(default)]
    needs: Vec<String>,
    /// Why the case has another outcome, or none, when a daemon builds.
    not_on_daemon: Option<String>,
    /// Serves the folder `serve` as `{server}`, and git repositories (`{server}/<name>.git`, whose first commit is
    /// `{commit:<name>}`). The Dockerfile may say so, too.
    serve: Option<Serve>,
    /// The builds, one after the other on one root.
    build: Vec<Build>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    /// Arguments beside the usual ones.
    #[serde(default)]
    args: Vec<String>,
    /// The context; `context` in the folder by default.
    context: Option<String>,
    /// Whether `-f <folder>/Dockerfile` is given.
    #[serde(default = "yes")]
    dockerfile: bool,
    /// Whether an OCI archive is asked for and looked at.
    #[serde(default = "yes")]
    output: bool,
    /// Standard input.
    #[serde(default)]
    stdin: String,
    /// The environment.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Files written before the build, by path in the folder.
    #[serde(default)]
    write: BTreeMap<String, String>,
    /// Files removed before the build.
    #[serde(default)]
    remove: Vec<String>,
    /// The display; `rawjson` by default, which `ran` and `cached` need.
    progress: Option<String>,
    /// How many steps run.
    ran: Option<usize>,
    /// How many steps come from the cache.
    cached: Option<usize>,
    /// Parts of the output of steps.
    #[serde(default)]
    logs: Vec<String>,
    /// Parts of standard error.
    #[serde(default)]
    stderr: Vec<String>,
    /// Parts that standard error must not have.
    #[serde(default)]
    not_stderr: Vec<String>,
    /// Parts of standard output.
    #[serde(default)]
    stdout: Vec<String>,
    /// The exit code it must fail with.
    fails: Option<i32>,
    /// How many layers the image has.
    layers: Option<usize>,
    /// Files in the image with their contents.
    #[serde(default)]
    files: BTreeMap<String, String>,
    /// Paths that must not be in the image.
    #[serde(default)]
    absent: Vec<String>,
    /// Commands of the program after the build, each with what its output must hold.
    #[serde(default)]
    then: Vec<Then>,
    /// Whether the image is the same, to the byte, as that of the build before.
    #[serde(default)]
    same_image: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Then {
    args: Vec<String>,
    #[serde(default)]
    stdout: Vec<String>,
    #[serde(default)]
    stderr: Vec<String>,
    #[serde(default)]
    code: i32,
}

fn yes() -> bool {
    true
}

/// A case, ready to be run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// `<area>/<case>`.
    pub name: String,
    folder: PathBuf,
}

/// Every case of the project.
///
/// # Errors
/// Those of listing the folders.
pub fn all_scenarios() -> Result<Vec<Scenario>> {
    let root = fixtures().join("scenarios");
    let mut found = Vec::new();
    for area in fs::read_dir(&root)? {
        for case in fs::read_dir(area?.path())? {
            let folder = case?.path();
            let name = folder.strip_prefix(&root)?.display().to_string();
            found.push(Scenario { name, folder });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

impl Scenario {
    /// Runs the case; `Ok(Some(reason))` where the machine lacks something.
    ///
    /// # Errors
    /// What did not come out as it must.
    pub fn run(&self) -> Result<Option<String>> {
        self.run_by(false)
    }

    /// Runs the case with builds on a daemon that uses the same root.
    ///
    /// # Errors
    /// What did not come out as it must.
    pub fn run_on_daemon(&self) -> Result<Option<String>> {
        self.run_by(true)
    }

    fn run_by(&self, daemon: bool) -> Result<Option<String>> {
        let text = fs::read_to_string(self.folder.join("scenario.toml")).context("read scenario.toml")?;
        let script: Script = toml::from_str(&text)?;
        ensure!(!script.about.is_empty(), "a case says what it is about");
        if script.ordinary_user && !is_root() {
            return Ok(Some("becoming another user needs root".to_owned()));
        }
        if (script.root || script.container_root) && !is_root() {
            return Ok(Some("what it shows needs root".to_owned()));
        }
        if daemon && script.ordinary_user {
            return Ok(Some("the daemon of this test is root's".to_owned()));
        }
        if let Some(reason) = script.not_on_daemon.as_ref().filter(|_| daemon) {
            return Ok(Some(reason.clone()));
        }
        for need in &script.needs {
            if let Some(path) = need.strip_prefix("no ") {
                if Path::new(path).exists() {
                    return Ok(Some(format!("{path} is there")));
                }
                continue;
            }
            if !crate::tool(need) {
                return Ok(Some(format!("{need} is not installed")));
            }
        }
        let place = tempfile::Builder::new().prefix("builder-scenario-").tempdir()?;
        let dir = place.path().join("case");
        copy(&self.folder, &dir)?;
        fs::create_dir_all(dir.join("context"))?;
        let server = match &script.serve {
            Some(serve) => Some(Server::start(
                &dir.join("serve"),
                &place.path().join("git"),
                serve,
            )?),
            None => None,
        };
        let (root, out) = (place.path().join("root"), place.path().join("out"));
        fs::create_dir_all(&root)?;
        fs::create_dir_all(&out)?;
        let user = match (script.ordinary_user, script.tun, script.no_sub_ids) {
            (false, ..) if script.container_root => User::RootOfContainer,
            (false, ..) => User::Same,
            (true, true, _) => User::OrdinaryWithTun,
            (true, false, true) => User::OrdinaryWithoutSubIds,
            (true, false, false) => User::Ordinary,
        };
        let mut program = Program::new(&root, user);
        let mut bases = fixtures().join("bases");
        if !matches!(user, User::Same | User::RootOfContainer) {
            // That user may not look into this checkout.
            let binary = place.path().join("builder");
            fs::copy(Program::binary(), &binary)?;
            copy(&bases, &place.path().join("bases"))?;
            bases = place.path().join("bases");
            give_away(place.path())?;
            program = program.with_binary(&binary);
        }
        let daemon = match daemon {
            true => Some(Daemon::start(&program, place.path())?),
            false => None,
        };
        let case = Case {
            folder: &self.folder,
            daemon,
            server,
            dir,
            root: root.clone(),
            out,
            program,
            bases,
        };
        let dockerfile = case.dir.join("Dockerfile");
        if case.server.is_some() && dockerfile.exists() {
            fs::write(&dockerfile, case.fill(&fs::read_to_string(&dockerfile)?))?;
        }
        let mut last: Option<Image> = None;
        for (number, build) in script.build.iter().enumerate() {
            let image = case
                .build(build, last.as_ref())
                .with_context(|| format!("build {}", number + 1))?;
            last = image.or(last);
        }
        if let Some(image) = last {
            case.compare(&image)?;
        }
        Ok(None)
    }
}

struct Case<'a> {
    folder: &'a Path,
    daemon: Option<Daemon>,
    server: Option<Server>,
    dir: PathBuf,
    root: PathBuf,
    out: PathBuf,
    program: Program,
    bases: PathBuf,
}

impl Case<'_> {
    fn fill(&self, text: &str) -> String {
        let mut filled = text
            .replace("{dir}", &self.dir.display().to_string())
            .replace("{fixtures}", &fixtures().display().to_string())
            .replace("{out}", &self.out.display().to_string());
        if let Some(server) = &self.server {
            filled = filled.replace("{server}", &server.at);
            for (name, commit) in &server.commits {
                filled = filled.replace(&format!("{{commit:{name}}}"), commit);
            }
        }
        filled
    }

    fn build(&self, build: &Build, before: Option<&Image>) -> Result<Option<Image>> {
        for (path, text) in &build.write {
            let path = self.dir.join(path);
            fs::create_dir_all(path.parent().context("a file has a folder")?)?;
            fs::write(path, text)?;
        }
        for path in &build.remove {
            fs::remove_file(self.dir.join(path)).with_context(|| path.clone())?;
        }
        let archive = self.out.join("image.tar");
        let _ = fs::remove_file(&archive);
        let mut args = vec!["build".to_owned()];
        args.push(format!(
            "--progress={}",
            build.progress.as_deref().unwrap_or("rawjson")
        ));
        args.push(format!(
            "--build-context=busybox=oci-layout://{}",
            self.bases.join("busybox").display()
        ));
        if build.dockerfile {
            args.extend(["-f".to_owned(), self.dir.join("Dockerfile").display().to_string()]);
        }
        if build.output {
            args.extend(["-o".to_owned(), format!("type=oci,dest={}", archive.display())]);
        }
        args.extend(build.args.iter().map(|arg| self.fill(arg)));
        args.push(self.fill(build.context.as_deref().unwrap_or("{dir}/context")));
        let before_run = Leftovers::look(&self.root);
        let daemon = self.daemon.iter().map(Daemon::variable);
        let env: Vec<_> = build
            .env
            .iter()
            .map(|(name, value)| (name.clone(), self.fill(value)))
            .chain(daemon)
            .collect();
        let given: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = self
            .program
            .run(&self.dir, &given, &env, self.fill(&build.stdin).as_bytes())?;
        let shown = || {
            format!(
                "code {}\n--- stdout\n{}--- stderr\n{}",
                output.code, output.stdout, output.stderr
            )
        };
        ensure!(
            output.code == build.fails.unwrap_or(0),
            "expected exit code {}: {}",
            build.fails.unwrap_or(0),
            shown()
        );
        self.check_texts(build, &output).with_context(shown)?;
        // A daemon answers when the build has ended; what a step that was called off was just reading or unpacking is put
        // away a moment later.
        let patience = if self.daemon.is_some() {
            LAST_HANDS
        } else {
            Duration::ZERO
        };
        let since = Instant::now();
        let mut left = Leftovers::look(&self.root).since(&before_run);
        while !left.is_empty() && since.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(20));
            left = Leftovers::look(&self.root).since(&before_run);
        }
        ensure!(left.is_empty(), "the build left behind: {left:?}");
        if build.fails.is_some() {
            return Ok(None);
        }
        for then in &build.then {
            self.then(then)?;
        }
        if !build.output {
            return Ok(None);
        }
        let image = Image::open(&archive).with_context(shown)?;
        check_image(build, &image, before)?;
        Ok(Some(image))
    }

    fn check_texts(&self, build: &Build, output: &Output) -> Result<()> {
        let steps = Steps::read(&output.stderr);
        if let Some(ran) = build.ran {
            ensure!(
                steps.ran.len() == ran,
                "expected {ran} steps to run, these did: {:?}",
                steps.ran
            );
        }
        if let Some(cached) = build.cached {
            ensure!(
                steps.cached.len() == cached,
                "expected {cached} cached steps: {:?}",
                steps.cached
            );
        }
        for part in &build.logs {
            ensure!(
                steps.logs.contains(part),
                "no step said {part:?}, but:\n{}",
                steps.logs
            );
        }
        for (parts, text) in [(&build.stderr, &output.stderr), (&build.stdout, &output.stdout)] {
            for part in parts {
                ensure!(text.contains(&self.fill(part)), "missing: {part:?}");
            }
        }
        for part in &build.not_stderr {
            ensure!(!output.stderr.contains(part), "must not be there: {part:?}");
        }
        Ok(())
    }

    fn then(&self, then: &Then) -> Result<()> {
        let args: Vec<String> = then.args.iter().map(|arg| self.fill(arg)).collect();
        let given: Vec<&str> = args.iter().map(String::as_str).collect();
        let env: Vec<_> = self.daemon.iter().map(Daemon::variable).collect();
        let output = self.program.run(&self.dir, &given, &env, b"")?;
        let shown = format!(
            "builder {args:?}: code {}\n{}{}",
            output.code, output.stdout, output.stderr
        );
        ensure!(
            output.code == then.code,
            "expected exit code {}: {shown}",
            then.code
        );
        for (parts, text) in [(&then.stdout, &output.stdout), (&then.stderr, &output.stderr)] {
            for part in parts {
                ensure!(text.contains(part.as_str()), "missing {part:?}: {shown}");
            }
        }
        Ok(())
    }

    fn compare(&self, image: &Image) -> Result<()> {
        let first = usize::from(
            image
                .layers
                .first()
                .is_some_and(|layer| layer.iter().any(|path| path == "bin/busybox")),
        );
        self.compare_text("tree.txt", &image.listing(first))?;
        let mut history = image.history();
        if let Some(server) = &self.server {
            history = history.replace(&server.at, "{server}");
        }
        self.compare_text("history.txt", &history)?;
        let expected = self.folder.join("expected/config.json");
        if expected.exists() {
            let wanted: serde_json::Value = serde_json::from_slice(&fs::read(&expected)?)?;
            for (key, value) in wanted.as_object().context("config.json is an object")? {
                let found = &image.config["config"][key];
                ensure!(found == value, "config {key}: expected {value}, got {found}");
            }
        }
        Ok(())
    }

    fn compare_text(&self, name: &str, found: &str) -> Result<()> {
        let path = self.folder.join("expected").join(name);
        if !path.exists() {
            return Ok(());
        }
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            fs::write(&path, found)?;
            return Ok(());
        }
        let wanted = fs::read_to_string(&path)?;
        ensure!(
            wanted == found,
            "{name} differs\n--- expected\n{wanted}--- found\n{found}"
        );
        Ok(())
    }
}

fn check_image(build: &Build, image: &Image, before: Option<&Image>) -> Result<()> {
    if let Some(layers) = build.layers {
        ensure!(
            image.layers.len() == layers,
            "expected {layers} layers: {:?}",
            image.layers
        );
    }
    for (path, text) in &build.files {
        let node = image
            .tree
            .get(path)
            .with_context(|| format!("no /{path} in:\n{}", image.listing(0)))?;
        ensure!(
            node.content == text.as_bytes(),
            "/{path} holds {:?}",
            String::from_utf8_lossy(&node.content)
        );
    }
    for path in &build.absent {
        ensure!(!image.tree.contains_key(path), "/{path} must not be in the image");
    }
    if build.same_image {
        let before = before.context("there was a build before")?;
        if image.digest != before.digest {
            bail!(
                "image {} differs from {}:\n{}\n{}",
                image.digest,
                before.digest,
                image.config,
                before.config
            );
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Makes everything belong to the ordinary user, and the way there passable.
fn give_away(folder: &Path) -> Result<()> {
    let status = std::process::Command::new("chown")
        .args(["-R", "builder-test:"])
        .arg(folder)
        .status()?;
    ensure!(
        status.success(),
        "chown to builder-test failed: does the user exist?"
    );
    Ok(())
}
