//! `[worker.oci]`: how steps run and how large the store may get. `[worker.containerd]` is only looked at.
use super::gc::{self, Gc};
use super::section::{Section, asks};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What is said of the one worker.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct OciWorker {
    /// Labels beside its own.
    pub labels: BTreeMap<String, String>,
    /// What it says it builds for; empty: what it finds.
    pub platforms: Vec<oci::Platform>,
    /// When and what to remove.
    pub gc: Gc,
    /// Which network steps have.
    pub network: NetworkMode,
    /// An OCI runtime to run steps by.
    pub binary: Option<PathBuf>,
    /// Above the control groups of steps.
    pub cgroup_parent: Option<String>,
    /// Steps at once.
    pub max_parallelism: Option<usize>,
}

/// Which network steps have that ask for none in particular.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkMode {
    /// Each its own.
    #[default]
    Own,
    /// The machine's.
    Host,
}

impl NetworkMode {
    /// Reads BuildKit's names.
    ///
    /// # Errors
    /// A sentence for names that are none, and for those that cannot be had.
    pub fn parse(text: &str) -> Result<NetworkMode, String> {
        match text {
            "auto" | "bridge" | "" => Ok(NetworkMode::Own),
            "host" => Ok(NetworkMode::Host),
            "cni" => Err("plugins of CNI are not used here; auto gives steps a network of their own".into()),
            other => Err(format!(
                "unknown network {other:?}; known are auto, bridge and host"
            )),
        }
    }
}

const OWN_NETWORK: &str = "steps have networks made by the builder itself";

pub(super) fn read(mut section: Section<'_, '_>) -> OciWorker {
    let mut is_there = true;
    let mut worker = OciWorker::default();
    if let Some(oci) = section.section("oci") {
        (worker, is_there) = read_oci(oci);
    }
    if !is_there {
        section.refuse("containerd", |_| true, "there is no containerd worker here");
        section.refuse_here("oci.enabled", "there is no other worker");
    } else if let Some(mut containerd) = section.section("containerd")
        && containerd.bool("enabled") != Some(false)
    {
        containerd.warn_here(
            "enabled",
            "there is no containerd worker here; the one of [worker.oci] is used",
        );
    }
    section.finish();
    worker
}

fn read_oci(mut section: Section<'_, '_>) -> (OciWorker, bool) {
    let is_there = section.bool("enabled").unwrap_or(true);
    let mut worker = OciWorker {
        labels: section.pairs("labels").into_iter().collect(),
        gc: gc::read(&mut section),
        binary: section.path("binary"),
        cgroup_parent: section.text("defaultCgroupParent"),
        max_parallelism: section
            .count::<usize>("max-parallelism")
            .filter(|steps| *steps > 0),
        ..OciWorker::default()
    };
    for text in section.texts("platforms").unwrap_or_default() {
        match oci::Platform::parse(&text) {
            Ok(platform) => worker.platforms.push(platform),
            Err(error) => section.refuse_here("platforms", &error.to_string()),
        }
    }
    match NetworkMode::parse(&section.text("networkMode").unwrap_or_default()) {
        Ok(mode) => worker.network = mode,
        Err(reason) => section.refuse_here("networkMode", &reason),
    }
    for key in [
        "cniConfigPath",
        "cniBinaryPath",
        "cniPoolSize",
        "bridgeName",
        "bridgeSubnet",
    ] {
        section.warn(key, OWN_NETWORK);
    }
    if let Some(name) = section.text("snapshotter")
        && !matches!(name.as_str(), "auto" | "overlayfs")
    {
        section.warn_here(
            "snapshotter",
            &format!("{name:?} is not used here; layers are put together by overlayfs"),
        );
    }
    section.warn(
        "stargzSnapshotter",
        "layers are fetched when they are needed, without a snapshotter",
    );
    section.warn(
        "rootless",
        "whether there are root's rights is found out by the program",
    );
    section.warn(
        "noProcessSandbox",
        "steps have process ids of their own here, in containers too",
    );
    section.refuse(
        "proxySnapshotterPath",
        asks,
        "there are no snapshotters beside the built-in one",
    );
    section.refuse(
        "apparmor-profile",
        asks,
        "steps cannot be put under a profile of AppArmor here",
    );
    section.refuse("selinux", asks, "steps are given no labels of SELinux here");
    section.refuse("userRemapUnsupported", asks, "users cannot be mapped here");
    section.finish();
    (worker, is_there)
}
