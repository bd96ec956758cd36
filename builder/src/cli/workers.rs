//! `workers`: what builds, here or on a daemon.
use super::args::{Global, WorkersArgs};
use super::exit::ExitStatus;
use super::table::Table;
use crate::client;
use crate::config::{Config, Gc};
use crate::daemon::WorkerInfo;
use crate::units::show_bytes;
use anyhow::Result;
use api::types::WorkerRecord;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

/// Lists them.
pub(super) fn run(global: &Global, args: &WorkersArgs) -> Result<ExitStatus> {
    let config = Config::load(global.root.clone())?;
    let workers = match args.remote.find(&config.environment)? {
        Some(remote) => client::workers(&remote, &args.filter)?,
        None => vec![here(&config)?],
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        for worker in &workers {
            writeln!(out, "{}", as_json(worker))?;
        }
    } else if args.verbose {
        for worker in &workers {
            out.write_all(whole(worker).as_bytes())?;
        }
    } else {
        let mut table = Table::new(&["ID", "PLATFORMS"]);
        for worker in &workers {
            table.row(vec![worker.id.clone(), platforms(worker).join(",")]);
        }
        out.write_all(table.text().as_bytes())?;
    }
    Ok(ExitStatus::DONE)
}

/// The worker of this process; without a daemon nothing is removed by policies.
fn here(config: &Config) -> Result<WorkerRecord> {
    let runtime = client::runtime()?;
    runtime.block_on(async {
        let engine = client::open(config, None)?;
        let gc = Gc {
            is_on: Some(false),
            ..Gc::default()
        };
        let info = WorkerInfo::new(engine.cache.root(), BTreeMap::new(), Vec::new(), gc);
        Ok(info.whole(&engine.worker))
    })
}

fn platforms(worker: &WorkerRecord) -> Vec<String> {
    let platforms = worker.platforms.iter().map(|platform| {
        let variant = match platform.variant.as_str() {
            "" => String::new(),
            variant => format!("/{variant}"),
        };
        format!("{}/{}{variant}", platform.os, platform.architecture)
    });
    platforms.collect()
}

fn whole(worker: &WorkerRecord) -> String {
    let mut lines = vec![
        format!("ID:         {}", worker.id),
        format!("Platforms:  {}", platforms(worker).join(",")),
    ];
    if let Some(version) = &worker.buildkit_version {
        let words = [&version.package, &version.version, &version.revision];
        let words: Vec<&str> = words
            .iter()
            .map(|word| word.as_str())
            .filter(|word| !word.is_empty())
            .collect();
        lines.push(format!("Version:    {}", words.join(" ")));
    }
    lines.push("Labels:".into());
    lines.extend(
        worker
            .labels
            .iter()
            .map(|(key, value)| format!("  {key}: {value}")),
    );
    if !worker.cdi_devices.is_empty() {
        lines.push("Devices:".into());
    }
    lines.extend(worker.cdi_devices.iter().map(|device| {
        let note = if device.auto_allow {
            " (allowed by itself)"
        } else {
            ""
        };
        format!("  {}{note}", device.name)
    }));
    for (number, policy) in worker.gc_policy.iter().enumerate() {
        lines.push(format!("GC policy {number}:"));
        lines.push(format!("  All:                 {}", policy.all));
        if !policy.filters.is_empty() {
            lines.push(format!("  Filters:             {}", policy.filters.join(" ")));
        }
        if let Some(age) = u64::try_from(policy.keep_duration).ok().filter(|age| *age > 0) {
            let hours = Duration::from_nanos(age).as_secs() / 3600;
            lines.push(format!("  Keep duration:       {hours}h"));
        }
        let spaces = [
            ("Reserved space:", policy.reserved_space),
            ("Minimum free space:", policy.min_free_space),
            ("Maximum used space:", policy.max_used_space),
        ];
        for (name, bytes) in spaces {
            if let Some(bytes) = u64::try_from(bytes).ok().filter(|bytes| *bytes > 0) {
                lines.push(format!("  {name:20} {}", show_bytes(bytes)));
            }
        }
    }
    lines.join("\n") + "\n\n"
}

fn as_json(worker: &WorkerRecord) -> serde_json::Value {
    let devices = worker.cdi_devices.iter().map(|device| {
        json!({"name": device.name, "auto_allow": device.auto_allow, "annotations": device.annotations})
    });
    let policies = worker.gc_policy.iter().map(|policy| {
        json!({
            "all": policy.all,
            "filters": policy.filters,
            "keep_seconds": policy.keep_duration / 1_000_000_000,
            "reserved_bytes": policy.reserved_space,
            "max_used_bytes": policy.max_used_space,
            "min_free_bytes": policy.min_free_space,
        })
    });
    let version = worker.buildkit_version.as_ref().map(|version| {
        json!({"package": version.package, "version": version.version, "revision": version.revision})
    });
    json!({
        "id": worker.id,
        "platforms": platforms(worker),
        "labels": worker.labels,
        "version": version,
        "devices": devices.collect::<Vec<_>>(),
        "gc": policies.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_worker_is_shown_whole() {
        let info = WorkerInfo::new(
            Path::new("/"),
            [("a".to_owned(), "b".to_owned())].into(),
            vec![oci::Platform::parse("linux/arm/v7").expect("valid")],
            Gc::default(),
        );
        let record = info.record();
        let text = whole(&record);
        for part in [
            "Platforms:  linux/arm/v7\n",
            "  a: b\n",
            "GC policy 3:\n  All:                 true\n",
            "  Keep duration:       48h\n",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let json = as_json(&record);
        assert_eq!(json["gc"][0]["max_used_bytes"], 512_000_000);
    }
}
