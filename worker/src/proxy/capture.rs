//! What the steps of a build asked the outside for.
//!
//! | noted | is |
//! |---|---|
//! | request | method, address, status, where it was sent on to |
//! | material | address and SHA-256 of what a whole, successful GET gave |
//! | incomplete | a request whose answer is no material, and why |
//!
//! User info is masked in all of it. There is a limit to what is noted; beyond it the materials are incomplete.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::Arc,
};

use oci::Digest;
use parking_lot::Mutex;
use url::Url;

/// Requests of one step that are noted.
const MAX_REQUESTS: usize = 10_000;

/// Something a step fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Material {
    /// Where from.
    pub address: String,
    /// SHA-256 of it.
    pub digest: Digest,
}

/// A request whose answer is not known well enough to be a material.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incomplete {
    /// `GET`, `POST`, …
    pub method: String,
    /// Where to.
    pub address: String,
    /// A word for why, as provenance has it.
    pub reason: &'static str,
}

/// A request and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    method: String,
    address: String,
    sent_on_to: Option<String>,
    status: u16,
}

/// What one step asked for.
#[derive(Debug, Default)]
pub struct Capture {
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    requests: Vec<Asked>,
    materials: Vec<Material>,
    incomplete: Vec<Incomplete>,
    left_out: usize,
}

/// What the steps of a build asked for, by vertex.
#[derive(Clone, Debug, Default)]
pub struct Captures {
    steps: Arc<Mutex<BTreeMap<Digest, Arc<Capture>>>>,
}

impl Captures {
    /// What this step asked for; `None` if it did not run in this build.
    #[must_use]
    pub fn of(&self, step: &Digest) -> Option<Arc<Capture>> {
        self.steps.lock().get(step).cloned()
    }

    /// Notes what a step asked for.
    pub(crate) fn note(&self, step: Digest, capture: Arc<Capture>) {
        self.steps.lock().insert(step, capture);
    }
}

impl Capture {
    pub(super) fn request(&self, method: &str, address: &Url, status: u16, location: Option<&str>) {
        let sent_on_to = location.map(|location| match address.join(location) {
            Ok(whole) => masked(whole.as_str()),
            Err(_) => location.to_owned(),
        });
        let mut noted = self.noted.lock();
        if noted.requests.len() >= MAX_REQUESTS {
            noted.left_out += 1;
            return;
        }
        noted.requests.push(Asked {
            method: method.to_owned(),
            address: masked(address.as_str()),
            sent_on_to,
            status,
        });
    }

    pub(super) fn material(&self, address: &Url, digest: Digest) {
        let mut noted = self.noted.lock();
        if noted.materials.len() >= MAX_REQUESTS {
            noted.left_out += 1;
            return;
        }
        noted.materials.push(Material {
            address: masked(address.as_str()),
            digest,
        });
    }

    pub(super) fn incomplete(&self, method: &str, address: &Url, reason: &'static str) {
        let mut noted = self.noted.lock();
        if noted.incomplete.len() >= MAX_REQUESTS {
            noted.left_out += 1;
            return;
        }
        noted.incomplete.push(Incomplete {
            method: method.to_owned(),
            address: masked(address.as_str()),
            reason,
        });
    }

    /// What was fetched; addresses that only led to one of them count as it.
    #[must_use]
    pub fn materials(&self) -> Vec<Material> {
        let noted = self.noted.lock();
        let mut found = noted.materials.clone();
        let mut digests: HashMap<&str, Digest> = HashMap::new();
        for material in &noted.materials {
            digests.insert(&material.address, material.digest);
        }
        // Who leads to an address, so that each is looked at once.
        let mut leading: HashMap<&str, Vec<&str>> = HashMap::new();
        for request in &noted.requests {
            if let Some(target) = request.sent_on_to.as_deref().filter(|to| *to != request.address) {
                leading.entry(target).or_default().push(&request.address);
            }
        }
        let mut next: Vec<(&str, Digest)> = digests.iter().map(|(to, digest)| (*to, *digest)).collect();
        next.sort_unstable();
        while let Some((target, digest)) = next.pop() {
            for from in leading.remove(target).unwrap_or_default() {
                if digests.insert(from, digest).is_none() {
                    found.push(Material {
                        address: from.to_owned(),
                        digest,
                    });
                    next.push((from, digest));
                }
            }
        }
        found
    }

    /// Requests whose answers are no materials.
    #[must_use]
    pub fn unknown(&self) -> Vec<Incomplete> {
        let noted = self.noted.lock();
        let mut unknown = noted.incomplete.clone();
        if noted.left_out > 0 {
            unknown.push(Incomplete {
                method: String::new(),
                address: String::new(),
                reason: "too_many_requests",
            });
        }
        unknown
    }

    /// For the log of the step; empty if it asked for nothing.
    #[must_use]
    pub fn log(&self) -> String {
        let noted = self.noted.lock();
        let mut text = String::new();
        if noted.requests.is_empty() {
            return text;
        }
        text.push_str("proxy network requests:\n");
        for request in &noted.requests {
            let Asked {
                method,
                address,
                status,
                ..
            } = request;
            let _ = writeln!(text, "- {method} {address} -> {status}");
        }
        if noted.left_out > 0 {
            let _ = writeln!(text, "- and {} more", noted.left_out);
        }
        text
    }
}

/// An address without the names and passwords in it.
#[must_use]
pub fn masked(address: &str) -> String {
    const MASK: &str = "xxxxx";
    let Some((scheme, rest)) = address.split_once("://") else {
        return address.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let Some((user, host)) = rest[..end].rsplit_once('@') else {
        return address.to_owned();
    };
    let user = match user.split_once(':') {
        Some(("", _)) => format!(":{MASK}"),
        Some(_) => format!("{MASK}:{MASK}"),
        None if user.is_empty() => String::new(),
        None => MASK.to_owned(),
    };
    format!("{scheme}://{user}@{host}{}", &rest[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().expect("an address")
    }

    #[test]
    fn what_leads_to_a_material_is_one() {
        let capture = Capture::default();
        let digest = Digest::of(b"it");
        for (from, to) in [
            ("a", "b"),
            ("b", "/c"),
            ("x", "y"),
            ("l", "l"),
            ("m", "n"),
            ("n", "m"),
        ] {
            capture.request("GET", &url(&format!("http://h/{from}")), 302, Some(to));
        }
        capture.material(&url("http://h/c"), digest);
        let mut found: Vec<_> = capture.materials().into_iter().map(|m| m.address).collect();
        found.sort();
        assert_eq!(found, ["http://h/a", "http://h/b", "http://h/c"]);
    }

    #[test]
    fn names_and_passwords_in_addresses_are_masked() {
        for (address, expected) in [
            ("https://host/x.git#main", "https://host/x.git#main"),
            ("https://me:secret@host/x", "https://xxxxx:xxxxx@host/x"),
            ("https://token@host/x?a=b@c", "https://xxxxx@host/x?a=b@c"),
            ("https://:secret@host", "https://:xxxxx@host"),
            ("git@host:path", "git@host:path"),
            ("local:name", "local:name"),
        ] {
            assert_eq!(masked(address), expected);
        }
    }

    #[test]
    fn there_is_an_end_to_what_is_noted() {
        let capture = Capture::default();
        for number in 0..MAX_REQUESTS + 3 {
            capture.request("GET", &url(&format!("http://h/{number}")), 200, None);
        }
        assert!(capture.log().ends_with("- and 3 more\n"));
        assert_eq!(capture.unknown().len(), 1);
        assert_eq!(Capture::default().log(), "");
    }
}
