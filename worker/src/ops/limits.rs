//! The limits of a step that several builds wait for: what none of them is kept from by the other.
//!
//! | limit | of two |
//! |---|---|
//! | memory | none, else the larger |
//! | memory and swap | the one that is said; unlimited, else the larger |
//! | weight | the one that is said, else the larger |
//! | quota in a period | none, else the larger share of the time; of equal ones the shorter period |
//! | CPUs, memory nodes | all, else both together |
//!
//! Limits are no part of a cache key. What runs already keeps those it began with.
use llb::LinuxResources;

/// The looser of two in each.
///
/// Differs: to BuildKit a build without limits says nothing of them, and runs by those of the other. Whoever asked for no
/// limit is not to be killed by another's. The tests below hold it.
pub(super) fn looser(one: Option<&LinuxResources>, other: Option<&LinuxResources>) -> Option<LinuxResources> {
    let (a, b) = (one?, other?);
    let (cpu_period, cpu_quota) = quota((a.cpu_period, a.cpu_quota), (b.cpu_period, b.cpu_quota));
    Some(LinuxResources {
        memory: match (a.memory, b.memory) {
            (0, _) | (_, 0) => 0,
            (a, b) => a.max(b),
        },
        memory_swap: match (a.memory_swap, b.memory_swap) {
            (0, said) | (said, 0) => said,
            (-1, _) | (_, -1) => -1,
            (a, b) => a.max(b),
        },
        // Unsaid is the usual weight, not an unlimited one.
        cpu_shares: a.cpu_shares.max(b.cpu_shares),
        cpu_period,
        cpu_quota,
        cpuset_cpus: together(&a.cpuset_cpus, &b.cpuset_cpus),
        cpuset_mems: together(&a.cpuset_mems, &b.cpuset_mems),
    })
}

/// The period with the quota that is the larger share of it; the two belong together.
fn quota(a: (u64, i64), b: (u64, i64)) -> (u64, i64) {
    let is_unlimited = |(_, quota): &(u64, i64)| *quota <= 0;
    if is_unlimited(&a) || is_unlimited(&b) {
        return if is_unlimited(&a) { a } else { b };
    }
    // What the kernel takes for a period nobody names.
    let period = |(period, _): (u64, i64)| if period == 0 { 100_000 } else { period };
    let share_a = i128::from(a.1) * i128::from(period(b));
    let share_b = i128::from(b.1) * i128::from(period(a));
    match share_a.cmp(&share_b) {
        std::cmp::Ordering::Greater => a,
        std::cmp::Ordering::Less => b,
        std::cmp::Ordering::Equal if period(a) <= period(b) => a,
        std::cmp::Ordering::Equal => b,
    }
}

/// All that either list has; the kernel takes overlapping ranges (cpuset(7), List format).
fn together(a: &str, b: &str) -> String {
    match (a, b) {
        ("", _) | (_, "") => String::new(),
        (a, b) if a == b => a.to_owned(),
        (a, b) => format!("{a},{b}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_build_is_kept_from_what_it_may() {
        let both = |a: LinuxResources, b: LinuxResources| {
            let one = looser(Some(&a), Some(&b));
            assert_eq!(one, looser(Some(&b), Some(&a)), "in either order");
            one.expect("both have limits")
        };
        let of = |memory, memory_swap, cpu_shares| LinuxResources {
            memory,
            memory_swap,
            cpu_shares,
            ..LinuxResources::default()
        };
        assert_eq!(both(of(10, 20, 5), of(30, 10, 0)), of(30, 20, 5));
        assert_eq!(both(of(10, -1, 5), of(0, 10, 7)), of(0, -1, 7));
        assert_eq!(both(of(0, 0, 0), of(0, 10, 0)), of(0, 10, 0));

        let cpu = |cpu_period, cpu_quota| LinuxResources {
            cpu_period,
            cpu_quota,
            ..LinuxResources::default()
        };
        assert_eq!(both(cpu(100, 50), cpu(1000, 400)), cpu(100, 50));
        assert_eq!(both(cpu(100, 50), cpu(1000, 500)), cpu(100, 50));
        assert_eq!(both(cpu(100, 50), cpu(200, 0)), cpu(200, 0));
        assert_eq!(both(cpu(0, 60_000), cpu(1000, 500)), cpu(0, 60_000));
    }

    #[test]
    fn whoever_has_no_limits_is_not_held_to_another_s() {
        let some = LinuxResources {
            memory: 1,
            ..LinuxResources::default()
        };
        assert_eq!(looser(Some(&some), None), None);
        assert_eq!(looser(None, Some(&some)), None);
        let cpus = |cpus: &str| LinuxResources {
            cpuset_cpus: cpus.into(),
            ..LinuxResources::default()
        };
        let of = |a: &str, b: &str| looser(Some(&cpus(a)), Some(&cpus(b))).map(|one| one.cpuset_cpus);
        assert_eq!(of("0", "0"), Some("0".into()));
        assert_eq!(of("0-1", "3"), Some("0-1,3".into()));
        assert_eq!(of("0-1", ""), Some(String::new()));
    }
}
