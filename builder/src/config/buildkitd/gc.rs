//! When a daemon's store is too large, and what goes first: `gc`, `reservedSpace`, `maxUsedSpace`, `minFreeSpace`,
//! `gckeepstorage` and `[[gcpolicy]]`.
use super::section::Section;
use super::sizes::Space;
use std::time::Duration;

/// One step of a sweep; a sweep takes them in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcPolicy {
    /// Which records; none: every one.
    pub filters: Vec<String>,
    /// Internal, frontend and shared records too.
    pub all: bool,
    /// Only what was not used for so long.
    pub keep_duration: Option<Duration>,
    /// Never below this.
    pub reserved: Option<Space>,
    /// As long as there is more than this.
    pub max_used: Option<Space>,
    /// As long as less than this of the disk is free.
    pub min_free: Option<Space>,
}

/// The three limits of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcLimits {
    /// Never below this.
    pub reserved: Option<Space>,
    /// As long as there is more than this.
    pub max_used: Option<Space>,
    /// As long as less than this of the disk is free.
    pub min_free: Option<Space>,
}

/// What is said of gc.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gc {
    /// Whether there is any; unsaid: yes.
    pub is_on: Option<bool>,
    /// The limits of the default policies.
    pub limits: GcLimits,
    /// In place of the default ones.
    pub policies: Option<Vec<GcPolicy>>,
}

impl Gc {
    /// What a sweep does; empty: there is none.
    pub fn policies(&self, disk: u64) -> Vec<GcPolicy> {
        if self.is_on == Some(false) {
            return Vec::new();
        }
        match &self.policies {
            Some(policies) => policies.clone(),
            None => default_policies(self.limits, disk),
        }
    }
}

impl Gc {
    /// What the store may hold by these policies: writing must not fail below it. 0: nothing is said.
    pub fn least_ceiling(&self, disk: u64) -> u64 {
        let said = self
            .policies
            .iter()
            .flatten()
            .filter_map(|policy| policy.max_used);
        let said = said.chain(self.limits.max_used).map(|space| space.bytes(disk));
        said.max().unwrap_or_default()
    }
}

/// Records that are made again in no time, or are copies of what somebody has.
const EASY: [&str; 3] = [
    "type==source.local",
    "type==exec.cachemount",
    "type==source.git.checkout",
];
const GIGABYTE: u64 = 1_000_000_000;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// BuildKit's default: what is easily had again after two days, what was unused for sixty, then by the limits.
fn default_policies(limits: GcLimits, disk: u64) -> Vec<GcPolicy> {
    let limits = match limits == GcLimits::default() {
        false => limits,
        true => {
            let least = |part: u64, bytes: u64| match Space::Percent(part).bytes(disk) > bytes {
                true => Space::Bytes(bytes),
                false => Space::Percent(part),
            };
            GcLimits {
                reserved: Some(least(10, 10 * GIGABYTE)),
                max_used: Some(least(80, 100 * GIGABYTE)),
                min_free: Some(Space::Percent(20)),
            }
        }
    };
    let capped = GcPolicy {
        reserved: limits.reserved,
        max_used: limits.max_used,
        min_free: limits.min_free,
        ..GcPolicy::default()
    };
    vec![
        GcPolicy {
            filters: EASY.map(str::to_owned).into(),
            keep_duration: Some(DAY * 2),
            max_used: Some(Space::Bytes(512_000_000)),
            ..GcPolicy::default()
        },
        GcPolicy {
            keep_duration: Some(DAY * 60),
            ..capped.clone()
        },
        capped.clone(),
        GcPolicy { all: true, ..capped },
    ]
}

/// Reads the keys of gc from a worker's section.
pub(super) fn read(section: &mut Section<'_, '_>) -> Gc {
    let is_on = section.bool("gc");
    let old = section.space("gckeepstorage");
    let mut limits = limits(section);
    if limits == GcLimits::default() {
        limits.reserved = old;
    }
    let policies = section.sections("gcpolicy");
    let policies = policies.map(|all| all.into_iter().map(policy).collect());
    Gc {
        is_on,
        limits,
        policies,
    }
}

/// Nothing and 0 are the same.
fn limits(section: &mut Section<'_, '_>) -> GcLimits {
    let mut limit = |key| {
        section
            .space(key)
            .filter(|space| !matches!(space, Space::Bytes(0) | Space::Percent(0)))
    };
    GcLimits {
        reserved: limit("reservedSpace"),
        max_used: limit("maxUsedSpace"),
        min_free: limit("minFreeSpace"),
    }
}

fn policy(mut section: Section<'_, '_>) -> GcPolicy {
    let old = section.space("keepBytes");
    let mut limits = limits(&mut section);
    if limits == GcLimits::default() {
        limits.reserved = old;
    }
    let filters = section.texts("filters").unwrap_or_default();
    for filter in &filters {
        if let Err(error) = cache::Filter::parse(filter) {
            section.refuse_here("filters", &error.to_string());
        }
    }
    let made = GcPolicy {
        filters,
        all: section.bool("all").unwrap_or_default(),
        keep_duration: section.duration("keepDuration"),
        reserved: limits.reserved,
        max_used: limits.max_used,
        min_free: limits.min_free,
    };
    section.finish();
    made
}

/// The limits of `--oci-worker-gc-keepstorage`: `reserved[,free[,maximum]]` in megabytes.
///
/// # Errors
/// A sentence that says what is wrong with the text.
pub fn parse_keep_storage(text: &str) -> Result<GcLimits, String> {
    let invalid = || format!("{text:?} must be RESERVED[,FREE[,MAXIMUM]] in megabytes");
    let mut numbers = text.splitn(3, ',').map(|part| {
        let number = part.trim().parse::<u64>().ok();
        number
            .and_then(|number| number.checked_mul(1_000_000))
            .map(|bytes| (bytes > 0).then_some(Space::Bytes(bytes)))
            .ok_or_else(invalid)
    });
    let mut next = || numbers.next().transpose().map(Option::flatten);
    Ok(GcLimits {
        reserved: next()?,
        min_free: next()?,
        max_used: next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_storage() {
        let space = |megabytes: u64| Some(Space::Bytes(megabytes * 1_000_000));
        for (text, expected) in [
            ("512", Some((space(512), None, None))),
            ("512,100", Some((space(512), space(100), None))),
            ("512,0,2000", Some((space(512), None, space(2000)))),
            ("", None),
            ("1,2,3,4", None),
            ("1GB", None),
        ] {
            let found = parse_keep_storage(text).ok();
            let found = found.map(|limits| (limits.reserved, limits.min_free, limits.max_used));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn the_default_takes_what_is_easily_had_again_first() {
        let policies = Gc::default().policies(1 << 40);
        assert_eq!(policies.len(), 4);
        assert_eq!(policies[0].max_used, Some(Space::Bytes(512_000_000)));
        assert_eq!(policies[2].reserved, Some(Space::Bytes(10 * GIGABYTE)));
        assert_eq!(policies[2].max_used, Some(Space::Bytes(100 * GIGABYTE)));
        assert!(policies[3].all);
        let small = Gc::default().policies(20 << 30);
        assert_eq!(small[2].max_used, Some(Space::Percent(80)));
        let off = Gc {
            is_on: Some(false),
            ..Gc::default()
        };
        assert!(off.policies(1 << 40).is_empty());
    }
}
