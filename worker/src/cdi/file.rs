//! What vendors describe: one kind of device per file, `.json`, `.yaml` or `.yml` (CDI specification, "CDI JSON
//! Specification").
//!
//! A directory listed later wins over an earlier one where both describe a device. Two files of one directory that
//! describe the same device leave it undescribed, and that is a fault. A file that is no valid description is a
//! fault, too, and is told to whoever misses a device.
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A description is no longer.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// One file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Description {
    cdi_version: String,
    pub(super) kind: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    devices: Vec<Described>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// One device of a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Described {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    container_edits: Edits,
}

/// What a container needs for it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Edits {
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<Node>,
    pub(super) mounts: Vec<MountEdit>,
    pub(super) hooks: Vec<HookEdit>,
    pub(super) additional_gids: Vec<u32>,
    pub(super) net_devices: Vec<serde::de::IgnoredAny>,
    pub(super) intel_rdt: Option<serde::de::IgnoredAny>,
}

/// A device node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Node {
    pub(super) path: String,
    pub(super) host_path: Option<String>,
    pub(super) r#type: Option<String>,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// Something of this machine bound into the container.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct MountEdit {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default)]
    pub(super) options: Vec<String>,
    #[serde(default)]
    pub(super) r#type: String,
}

/// A program of this machine that is run at a point of the container's life.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct HookEdit {
    pub(super) hook_name: String,
    pub(super) path: String,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<String>,
    pub(super) timeout: Option<i64>,
}

/// A device that can be asked for.
#[derive(Clone, Debug)]
pub(super) struct Device {
    /// Its own edits.
    pub(super) edits: Edits,
    /// The file's and its own; its own win.
    pub(super) annotations: BTreeMap<String, String>,
    /// The file, whose edits come with the first of its devices.
    pub(super) file: Arc<Description>,
}

/// All devices of this machine, by full name.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(super) devices: BTreeMap<String, Device>,
    /// Names and kinds of those that need no leave.
    pub(super) free: BTreeSet<String>,
    pub(super) faults: Vec<String>,
}

impl Registry {
    /// Reads every description in these directories, the most important last. Blocks.
    pub(crate) fn read(directories: &[PathBuf]) -> Registry {
        let mut registry = Registry::default();
        for directory in directories {
            registry.read_directory(directory);
        }
        registry
    }

    /// The same where these devices, or kinds of them, may be used by every build.
    #[must_use]
    pub(crate) fn with_free(mut self, names: &[String]) -> Registry {
        self.free.extend(names.iter().cloned());
        self
    }

    fn read_directory(&mut self, directory: &Path) {
        let mut files: Vec<PathBuf> = match std::fs::read_dir(directory) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => {
                self.faults.push(format!("{}: {error}", directory.display()));
                return;
            }
        };
        files.retain(|path| {
            path.extension()
                .and_then(|kind| kind.to_str())
                .is_some_and(|kind| matches!(kind, "json" | "yaml" | "yml"))
        });
        files.sort();
        let (mut here, mut twice) = (BTreeSet::new(), BTreeSet::new());
        for path in files {
            match read(&path) {
                Err(reason) => self.faults.push(format!("{}: {reason}", path.display())),
                Ok(devices) => {
                    for (name, device) in devices {
                        if !here.insert(name.clone()) {
                            twice.insert(name.clone());
                        }
                        self.devices.insert(name, device);
                    }
                }
            }
        }
        for name in twice {
            self.faults
                .push(format!("{}: two files describe {name}", directory.display()));
            self.devices.remove(&name);
        }
    }
}

fn read(path: &Path) -> Result<Vec<(String, Device)>, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("{size} bytes are too many for a description"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    // JSON is YAML, but its own reader tells mistakes better.
    let description: Description = match path.extension().and_then(|kind| kind.to_str()) {
        Some("json") => serde_json::from_str(&text).map_err(|error| error.to_string())?,
        _ => serde_saphyr::from_str(&text).map_err(|error| error.to_string())?,
    };
    check(&description)?;
    let file = Arc::new(description);
    let named = |device: &Described| {
        let mut annotations = file.annotations.clone();
        annotations.extend(device.annotations.clone());
        let device_of = Device {
            edits: device.container_edits.clone(),
            annotations,
            file: file.clone(),
        };
        (format!("{}={}", file.kind, device.name), device_of)
    };
    Ok(file.devices.iter().map(named).collect())
}

fn check(description: &Description) -> Result<(), String> {
    let version = description.cdi_version.as_str();
    let known = ["0.3.", "0.4.", "0.5.", "0.6.", "0.7.", "0.8.", "1.0.", "1.1."];
    if !known.iter().any(|known| version.starts_with(known)) {
        return Err(format!("version {version:?} is not known"));
    }
    if !is_kind(&description.kind) {
        return Err(format!("{:?} is not of the form vendor/class", description.kind));
    }
    if description.devices.is_empty() {
        return Err("it describes no device".to_owned());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
    match description
        .devices
        .iter()
        .find(|device| device.name.is_empty() || !device.name.chars().all(plain))
    {
        Some(device) => Err(format!("{:?} is no name of a device", device.name)),
        None => Ok(()),
    }
}

/// Whether it is `vendor/class`.
pub(super) fn is_kind(text: &str) -> bool {
    let is_word = |word: &str, more: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic())
            && word.ends_with(|c: char| c.is_ascii_alphanumeric())
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    text.split_once('/')
        .is_some_and(|(vendor, class)| is_word(vendor, "_-.") && is_word(class, "_-"))
}
