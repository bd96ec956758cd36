//! What is said of the one worker: by a daemon that is asked, and by `builder workers` without one.
use crate::config::{Gc, GcPolicy};
use api::types::{BuildkitVersion, CdiDevice, GcPolicy as WireGcPolicy, WorkerRecord};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use worker::Worker;

/// The worker of a store.
#[derive(Debug)]
pub(crate) struct WorkerInfo {
    /// Its id, the same at every start.
    pub(crate) id: String,
    root: PathBuf,
    labels: BTreeMap<String, String>,
    /// What it is to say it builds for; empty: what it finds.
    platforms: Vec<oci::Platform>,
    gc: Gc,
}

impl WorkerInfo {
    /// The worker of the store in `root`.
    pub(crate) fn new(
        root: &Path,
        labels: BTreeMap<String, String>,
        platforms: Vec<oci::Platform>,
        gc: Gc,
    ) -> WorkerInfo {
        WorkerInfo {
            id: oci::Digest::of(root.as_os_str().as_encoded_bytes()).hex()[..25].to_owned(),
            root: root.to_owned(),
            labels: own_labels().into_iter().chain(labels).collect(),
            platforms,
            gc,
        }
    }

    /// Its labels.
    pub(super) fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// What it builds for, looked up anew; the first is the default.
    pub(super) fn platforms(&self) -> Vec<oci::Platform> {
        match self.platforms.is_empty() {
            true => worker::platforms(),
            false => self.platforms.clone(),
        }
    }

    /// As the wire has it, without devices.
    pub(crate) fn record(&self) -> WorkerRecord {
        let platforms = self.platforms();
        let disk = disk_bytes(&self.root);
        let policies = self.gc.policies(disk).into_iter();
        WorkerRecord {
            id: self.id.clone(),
            labels: self.labels.clone(),
            platforms: platforms.iter().map(platform).collect(),
            gc_policy: policies.map(|policy| gc_policy(policy, disk)).collect(),
            buildkit_version: Some(version()),
            ..WorkerRecord::default()
        }
    }

    /// All of it. Blocks: descriptions of devices are read.
    pub(crate) fn whole(&self, worker: &Worker) -> WorkerRecord {
        let mut record = self.record();
        let devices = worker.devices().into_iter();
        record.cdi_devices = devices
            .map(|device| CdiDevice {
                name: device.name,
                auto_allow: device.allows_itself,
                annotations: device.annotations,
                on_demand: false,
            })
            .collect();
        record
    }
}

fn own_labels() -> BTreeMap<String, String> {
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    [
        ("org.mobyproject.buildkit.worker.executor", "builder"),
        ("org.mobyproject.buildkit.worker.hostname", hostname.as_str()),
        ("org.mobyproject.buildkit.worker.snapshotter", "overlayfs"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

fn gc_policy(policy: GcPolicy, disk: u64) -> WireGcPolicy {
    let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let bytes = |space: Option<crate::config::Space>| space.map_or(0, |space| number(space.bytes(disk)));
    WireGcPolicy {
        all: policy.all,
        keep_duration: policy
            .keep_duration
            .map_or(0, |age| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX)),
        filters: policy.filters,
        reserved_space: bytes(policy.reserved),
        max_used_space: bytes(policy.max_used),
        min_free_space: bytes(policy.min_free),
    }
}

pub(super) fn platform(platform: &oci::Platform) -> llb::proto::Platform {
    llb::proto::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone().unwrap_or_default(),
        os_version: platform.os_version.clone().unwrap_or_default(),
        os_features: platform.os_features.clone(),
    }
}

pub(super) fn version() -> BuildkitVersion {
    BuildkitVersion {
        package: "builder".into(),
        // Clients ask for features by BuildKit's version; this is the one whose behaviour is followed.
        version: "v0.26.0".into(),
        revision: env!("CARGO_PKG_VERSION").into(),
        ..BuildkitVersion::default()
    }
}

/// The size of the disk a folder is on, or will be.
pub(crate) fn disk_bytes(folder: &Path) -> u64 {
    let measured = folder
        .ancestors()
        .find_map(|folder| rustix::fs::statvfs(folder).ok());
    measured.map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize))
}
