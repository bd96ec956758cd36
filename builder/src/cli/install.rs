//! `install`, `completion`, `version`: putting the program where a shell finds it.
use super::args::{CompletionArgs, InstallArgs, command};
use super::exit::ExitStatus;
use crate::config::Environment;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The name under which the program means `builder build`.
const LINK: &str = "build";

/// Copies the running program to `DIR/builder` and makes the link `DIR/build`.
pub(super) fn run(args: &InstallArgs) -> Result<ExitStatus> {
    let environment = Environment::read();
    let folder = match &args.dir {
        Some(dir) => dir.clone(),
        None => default_folder(&environment)?,
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let program = std::env::current_exe().context("find the running program")?;
    let target = folder.join("builder");
    if !is_same_file(&program, &target) {
        let aside = folder.join(format!(".builder.{}", std::process::id()));
        let copied = std::fs::copy(&program, &aside).and_then(|_| std::fs::rename(&aside, &target));
        if let Err(error) = copied {
            let _ = std::fs::remove_file(&aside);
            return Err(error).with_context(|| format!("copy {} to {}", program.display(), target.display()));
        }
    }
    make_link(&folder)?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "installed {} and {}",
        target.display(),
        folder.join(LINK).display()
    )?;
    if !is_on_path(&environment, &folder) {
        writeln!(out, "add {} to PATH to use them by name", folder.display())?;
    }
    Ok(ExitStatus::DONE)
}

fn make_link(folder: &Path) -> Result<()> {
    let link = folder.join(LINK);
    match std::fs::symlink_metadata(&link) {
        Ok(found) if !found.is_symlink() => bail!("{} exists and is not a link of ours", link.display()),
        Ok(_) => std::fs::remove_file(&link).with_context(|| format!("replace {}", link.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("look at {}", link.display())),
    }
    std::os::unix::fs::symlink("builder", &link).with_context(|| format!("make the link {}", link.display()))
}

fn default_folder(environment: &Environment) -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok("/usr/local/bin".into());
    }
    match environment.path("HOME") {
        Some(home) => Ok(home.join(".local/bin")),
        None => bail!("HOME is not set; name a folder: builder install DIR"),
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (std::fs::metadata(one), std::fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

fn is_on_path(environment: &Environment, folder: &Path) -> bool {
    let path = environment.text("PATH").unwrap_or_default();
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    std::env::split_paths(path).any(|entry| entry.canonicalize().is_ok_and(|entry| entry == folder))
}

/// Prints a completion script.
pub(super) fn completion(args: &CompletionArgs) -> Result<ExitStatus> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "builder", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitStatus::DONE)
}

/// Prints the version.
pub(super) fn version() -> Result<ExitStatus> {
    writeln!(std::io::stdout(), "builder {}", env!("CARGO_PKG_VERSION"))?;
    Ok(ExitStatus::DONE)
}
