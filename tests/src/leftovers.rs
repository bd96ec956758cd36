//! What a build must not leave behind: mounts, cgroups, network namespaces, links, processes, files.
use std::{collections::BTreeSet, fs, path::Path};

/// The state of the machine that builds can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftovers {
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    processes: BTreeSet<String>,
    files: BTreeSet<String>,
}

impl Leftovers {
    /// Looks at the machine, as far as builds on `root` are concerned.
    pub fn look(root: &Path) -> Leftovers {
        let files = ["ingest", "active"]
            .iter()
            .flat_map(|folder| {
                let all = names(root.join(folder)).into_iter();
                all.map(move |name| format!("{folder}/{name}"))
            })
            .collect();
        let root = root.display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Leftovers {
            mounts: mounts
                .lines()
                .filter(|line| line.contains(&root))
                .map(str::to_owned)
                .collect(),
            cgroups: cgroups(),
            namespaces: names("/run/netns"),
            processes: processes(&root),
            files,
        }
    }

    /// What is here now and was not `before`, in words; nothing when all is clean.
    pub fn since(&self, before: &Leftovers) -> Vec<String> {
        let mut found = Vec::new();
        for (what, now, then) in [
            ("mount", &self.mounts, &before.mounts),
            ("cgroup", &self.cgroups, &before.cgroups),
            ("network namespace", &self.namespaces, &before.namespaces),
            ("process", &self.processes, &before.processes),
            ("temporary file", &self.files, &before.files),
        ] {
            found.extend(now.difference(then).map(|name| format!("{what} {name}")));
        }
        found
    }
}

fn names(folder: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Groups of steps: below a group of ours, anywhere in the hierarchies.
fn cgroups() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = entry.path();
            let parent_is_ours = folder.file_name().is_some_and(|name| name == "builder");
            // Tests run side by side: the group of a builder that lives is none of our leftovers.
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.split('-').nth(1).unwrap_or_default().to_owned();
            if parent_is_ours && !Path::new("/proc").join(owner).exists() {
                found.insert(path.display().to_string());
            }
            folders.push(path);
        }
    }
    found
}

/// Processes whose environment or command names the root.
fn processes(root: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let texts = [read("environ"), read("cmdline")];
        if texts
            .iter()
            .any(|text| String::from_utf8_lossy(text).contains(root))
        {
            found.insert(format!("{pid} {}", String::from_utf8_lossy(&read("comm")).trim()));
        }
    }
    found
}
