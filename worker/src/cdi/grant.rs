//! Which devices a step gets: what its names mean here, and what the build may use.
//!
//! | name | means |
//! |---|---|
//! | `vendor/class=name` | that device |
//! | `vendor/class=*` | all of the class |
//! | `vendor/class` | the first of the class |
//! | any of these without a device, or another word | those annotated with that class |
//!
//! Allowed is what `--allow device=NAME` says, all with `--allow device`, and devices whose description allows itself.
use super::DeviceError;
use super::file::{Device, Registry, is_kind};
use llb::op::CdiDevice;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// By this annotation a device says what it is, whoever made it.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
/// By this one it needs nobody's leave.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// Which devices a build may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceGrants {
    /// Every device.
    all: bool,
    /// The step's name for it, and whose place that takes, if another's.
    names: BTreeMap<String, Option<String>>,
}

/// A grant that says nothing sensible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form NAME[,alias=NAME]")]
pub struct InvalidGrant(String);

impl DeviceGrants {
    /// Adds what stands behind `device` in `--allow device[=NAME[,alias=NAME]]`; nothing there means all.
    ///
    /// # Errors
    /// [`InvalidGrant`].
    pub fn add(&mut self, text: &str) -> Result<(), InvalidGrant> {
        if text.is_empty() {
            self.all = true;
            return Ok(());
        }
        let mut fields = text.split(',');
        let name = fields.next().unwrap_or_default().trim();
        let mut alias = None;
        for field in fields {
            match field.trim().split_once('=') {
                Some(("alias", word)) if !word.is_empty() => alias = Some(word.to_owned()),
                _ => return Err(InvalidGrant(text.to_owned())),
            }
        }
        if name.is_empty() {
            return Err(InvalidGrant(text.to_owned()));
        }
        match alias {
            Some(alias) => self.names.insert(alias, Some(name.to_owned())),
            None => self.names.insert(name.to_owned(), None),
        };
        Ok(())
    }

    /// The full names of the devices for `wanted`, each once.
    pub(super) fn resolve(
        &self,
        wanted: &[CdiDevice],
        registry: &Registry,
    ) -> Result<Vec<String>, DeviceError> {
        let (mut found, mut forbidden) = (Vec::new(), Vec::new());
        let mut granted = BTreeSet::new();
        for (name, other) in &self.names {
            if other.is_none() {
                granted.extend(find(name, registry));
            }
        }
        for device in wanted {
            let alias = self.names.get(&device.name).and_then(Option::as_ref);
            let names = find(alias.unwrap_or(&device.name), registry);
            if names.is_empty() && !device.optional {
                return Err(DeviceError::Unknown {
                    name: device.name.clone(),
                    faults: registry.faults.clone(),
                });
            }
            for name in names {
                let is_allowed =
                    self.all || alias.is_some() || granted.contains(&name) || allows_itself(&name, registry);
                let list = if is_allowed { &mut found } else { &mut forbidden };
                if !list.contains(&name) {
                    list.push(name);
                }
            }
        }
        match forbidden.is_empty() {
            true => Ok(found),
            false => Err(DeviceError::Forbidden(forbidden)),
        }
    }
}

/// A device of this machine, as it is told to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownDevice {
    /// `vendor/class=name`
    pub name: String,
    /// Whether builds get it without having been allowed.
    pub allows_itself: bool,
    /// What its description says beside.
    pub annotations: BTreeMap<String, String>,
}

/// All that are described in these directories, by name; `free` are names and kinds that need no leave. Blocks.
pub(crate) fn known(directories: &[PathBuf], free: &[String]) -> Vec<KnownDevice> {
    let registry = Registry::read(directories).with_free(free);
    let told = |(name, device): (&String, &Device)| KnownDevice {
        name: name.clone(),
        allows_itself: allows_itself(name, &registry),
        annotations: device.annotations.clone(),
    };
    registry.devices.iter().map(told).collect()
}

fn allows_itself(name: &str, registry: &Registry) -> bool {
    let kind = name.split_once('=').map_or(name, |(kind, _)| kind);
    if registry.free.contains(name) || registry.free.contains(kind) {
        return true;
    }
    let device = registry.devices.get(name);
    let word = device.and_then(|device| device.annotations.get(AUTO_ALLOW));
    word.is_some_and(|word| matches!(word.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
}

fn find(wanted: &str, registry: &Registry) -> Vec<String> {
    let (kind, name) = wanted.split_once('=').unwrap_or((wanted, ""));
    let all = || registry.devices.keys();
    let mut found: Vec<String> = Vec::new();
    if is_kind(kind) {
        let of_kind = || all().filter(|full| full.split_once('=').is_some_and(|(its, _)| its == kind));
        match name {
            "" => found.extend(of_kind().next().cloned()),
            "*" => found.extend(of_kind().cloned()),
            _ => found.extend(all().find(|full| *full == wanted).cloned()),
        }
    }
    if found.is_empty() {
        let of_class = registry
            .devices
            .iter()
            .filter(|(_, device)| device.annotations.get(CLASS).is_some_and(|class| class == wanted));
        found.extend(of_class.map(|(full, _)| full.clone()));
    }
    found
}
