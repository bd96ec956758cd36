//! `du` and `prune`: what the store holds, and making room.
//!
//! Filters are those of `docker buildx`: `id`, `parents`, `description`, `inuse`, `mutable`, `immutable`, `type`,
//! `shared`, `private`, with `=`, `==`, `!=`, `~=`; and `until=24h`, which means unused for so long.
use super::args::{DuArgs, Global, PruneArgs};
use super::exit::ExitStatus;
use super::images::store;
use super::table::{Table, ago};
use super::values::UsageError;
use crate::client;
use crate::config::Environment;
use crate::progress::plain_line;
use crate::units::{parse_bytes, parse_duration, show_bytes};
use anyhow::Result;
use cache::{Filter, PruneOptions, UsageRecord};
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};
use std::time::{Duration, SystemTime};

/// Shows what there is.
pub(super) fn usage(global: &Global, args: &DuArgs) -> Result<ExitStatus> {
    let (filters, unused_for) = filters(&args.filter)?;
    let remote = args.remote.find(&Environment::read())?;
    let (all, image_bytes) = match &remote {
        Some(remote) => (client::disk_usage(remote)?, None),
        None => {
            let cache = store(global)?;
            (cache.usage()?, Some(cache.image_bytes()?))
        }
    };
    let now = SystemTime::now();
    let mut records: Vec<UsageRecord> = all
        .into_iter()
        .filter(|record| filters.is_empty() || filters.iter().any(|filter| filter.matches(record)))
        .filter(|record| {
            unused_for.is_none_or(|age| now.duration_since(record.last_used).is_ok_and(|idle| idle >= age))
        })
        .collect();
    records.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let mut out = std::io::stdout().lock();
    if args.json {
        for record in &records {
            writeln!(out, "{}", as_json(record))?;
        }
        return Ok(ExitStatus::DONE);
    }
    show(&mut out, &records, args.verbose)?;
    let reclaimable: u64 = records
        .iter()
        .filter(|record| !record.in_use)
        .map(|record| record.size)
        .sum();
    let shared: u64 = records
        .iter()
        .filter(|record| record.shared)
        .map(|record| record.size)
        .sum();
    writeln!(out, "\nShared:       {}", show_bytes(shared))?;
    writeln!(out, "Reclaimable:  {}", show_bytes(reclaimable))?;
    writeln!(
        out,
        "Total:        {}",
        show_bytes(records.iter().map(|record| record.size).sum())
    )?;
    if let Some(bytes) = image_bytes {
        writeln!(out, "Images only:  {}", show_bytes(bytes))?;
    }
    Ok(ExitStatus::DONE)
}

/// Makes room, after asking.
pub(super) fn prune(global: &Global, args: &PruneArgs) -> Result<ExitStatus> {
    let size = |flag: &str, text: &Option<String>| -> Result<Option<u64>, UsageError> {
        let parsed = text.as_deref().map(parse_bytes).transpose();
        parsed.map_err(|error| UsageError::new(format!("{flag}: {error}")))
    };
    let (filters, unused_for) = filters(&args.filter)?;
    let options = PruneOptions {
        filters,
        all: args.all,
        unused_for,
        max_used: size("--max-used-space", &args.max_used_space)?,
        reserved: size("--reserved-space", &args.reserved_space)?,
        min_free: size("--min-free-space", &args.min_free_space)?,
    };
    if !args.force && !confirmed(args.all)? {
        return Ok(ExitStatus::USER);
    }
    let removed = match args.remote.find(&Environment::read())? {
        Some(remote) => client::prune(
            &remote,
            &client::Pruning {
                filters: args
                    .filter
                    .iter()
                    .filter_map(|value| without_ages(value))
                    .collect(),
                all: options.all,
                unused_for,
                max_used: options.max_used,
                reserved: options.reserved,
                min_free: options.min_free,
            },
        )?,
        None => store(global)?.prune(&options)?,
    };
    let mut out = std::io::stdout().lock();
    show(&mut out, &removed, args.verbose)?;
    writeln!(
        out,
        "Total:        {}",
        show_bytes(removed.iter().map(|record| record.size).sum())
    )?;
    Ok(ExitStatus::DONE)
}

fn confirmed(all: bool) -> Result<bool> {
    let what = if all {
        "all build cache"
    } else {
        "all build cache that no image shares"
    };
    if !std::io::stdin().is_terminal() {
        return Err(
            UsageError::new("prune asks before it removes, but stdin is no terminal")
                .hint("add --force")
                .into(),
        );
    }
    write!(
        std::io::stderr(),
        "This will remove {what} that nothing uses now. Continue? [y/N] "
    )?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// A filter without the parts that are ages.
fn without_ages(value: &str) -> Option<String> {
    let rest: Vec<&str> = value
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty() && !part.starts_with("until=") && !part.starts_with("unused-for="))
        .collect();
    (!rest.is_empty()).then(|| rest.join(","))
}

/// Filters for records, and the age `until=` asks for.
fn filters(values: &[String]) -> Result<(Vec<Filter>, Option<Duration>), UsageError> {
    let mut filters = Vec::new();
    let mut unused_for = None;
    for value in values {
        let mut rest = Vec::new();
        for part in value.split(',') {
            let until = ["until=", "unused-for="]
                .iter()
                .find_map(|key| part.trim().strip_prefix(key));
            match until {
                Some(age) => {
                    let age = age.trim_start_matches('=');
                    let age = parse_duration(age)
                        .map_err(|error| UsageError::new(format!("--filter {value}: {error}")))?;
                    unused_for = Some(age);
                }
                None => rest.push(part),
            }
        }
        let rest = rest.join(",");
        if !rest.trim().is_empty() {
            let filter = Filter::parse(&rest)
                .map_err(|error| UsageError::new(format!("--filter {value}: {error}; and until=AGE")))?;
            filters.push(filter);
        }
    }
    Ok((filters, unused_for))
}

fn show(out: &mut impl Write, records: &[UsageRecord], verbose: bool) -> std::io::Result<()> {
    let now = SystemTime::now();
    let mut table = Table::new(&["ID", "RECLAIMABLE", "SIZE", "LAST USED", "DESCRIPTION"]);
    for record in records {
        let description = plain_line(record.description.replace('\n', " ").as_bytes(), false);
        if verbose {
            writeln!(
                out,
                "ID:           {}\nParents:      {}\nCreated:      {}\nMutable:      {}\nReclaimable:  {}\nShared:       {}\n\
                 Size:         {}\nUsage count:  {}\nLast used:    {}\nType:         {}\nDescription:  {description}\n",
                record.id,
                record.parents.join(", "),
                ago(record.created, now),
                record.mutable,
                !record.in_use,
                record.shared,
                show_bytes(record.size),
                record.usage_count,
                ago(record.last_used, now),
                record.kind.as_str(),
            )?;
            continue;
        }
        let id = format!("{}{}", record.id, if record.mutable { "*" } else { "" });
        table.row(vec![
            id,
            (!record.in_use).to_string(),
            show_bytes(record.size),
            ago(record.last_used, now),
            crate::progress::clip(&description, 60).to_owned(),
        ]);
    }
    if verbose {
        Ok(())
    } else {
        out.write_all(table.text().as_bytes())
    }
}

fn as_json(record: &UsageRecord) -> serde_json::Value {
    let time = |time: SystemTime| jiff::Timestamp::try_from(time).ok().map(|time| time.to_string());
    json!({
        "id": record.id, "parents": record.parents, "created": time(record.created),
        "lastUsed": time(record.last_used), "usageCount": record.usage_count, "size": record.size,
        "shared": record.shared, "inUse": record.in_use, "mutable": record.mutable,
        "type": record.kind.as_str(), "description": record.description,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_is_an_age_and_the_rest_are_filters() {
        let (found, age) = filters(&["type==source.local,until=24h".into()]).expect("valid");
        assert_eq!((found.len(), age), (1, Some(Duration::from_secs(86_400))));
        let (found, age) = filters(&["until=1h".into()]).expect("valid");
        assert_eq!((found.len(), age), (0, Some(Duration::from_secs(3600))));
        assert!(filters(&["colour=red".into()]).is_err());
        assert!(filters(&["until=soon".into()]).is_err());
    }
}
