//! What builds cost through a daemon on a unix socket: ours with our client, and side by side with BuildKit's.
use super::daemon::{Client, Daemon, Kind, reference};
use super::{Row, least, least_of, millis};
use anyhow::Result;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Builds before memory at rest is looked at.
const BUILDS: usize = 20;
/// How long a daemon is left alone before it counts as idle: just started; after builds, as it looks after itself once a
/// minute.
const REST: Duration = Duration::from_secs(3);
const UPKEEP: Duration = Duration::from_secs(65);
/// The large context, in bytes, and its files.
const SENT: usize = 600_000_000;
const SENT_FILES: usize = 24;
/// How often what takes seconds is measured.
const FEW: usize = 3;
/// Files of the context of many.
const MANY: usize = 50_000;

/// What a row says where there is nothing to compare with.
const ALONE: &str = "not compared: BENCH_BUILDKITD, BENCH_BUILDCTL";

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// A row of ours, with BuildKit's figure beside it where there is one.
fn compared<T>(
    what: &'static str,
    reference: Option<T>,
    row: impl FnOnce(T) -> (String, &'static str, bool),
) -> Row {
    let (figure, goal, is_met) = match reference {
        Some(theirs) => row(theirs),
        None => ("-".to_owned(), ALONE, true),
    };
    Row {
        what: what.into(),
        figure,
        goal: goal.into(),
        is_met,
    }
}

/// A Dockerfile of 12 steps and a little context.
fn small(folder: &Path) -> Result<()> {
    let text = "FROM base AS first\nWORKDIR /work\nENV A=1\nCOPY a.txt .\nRUN echo 1 > one\nRUN echo 2 > two\n\
                FROM base\nENV B=2\nCOPY --from=first /work /work\nWORKDIR /work\nRUN cat one two > three\n\
                CMD [\"cat\", \"three\"]\n";
    fs::write(folder.join("Dockerfile"), text)?;
    fs::write(folder.join("a.txt"), "a\n")?;
    Ok(())
}

/// Memory of a daemon at rest: just started, and after some builds.
pub(super) fn idle(folder: &Path) -> Result<Vec<Row>> {
    small(folder)?;
    let measure = |kind: &Kind, client: &Client| {
        let daemon = Daemon::start(kind)?;
        std::thread::sleep(REST);
        let fresh = daemon.resident()?;
        for _ in 0..BUILDS {
            daemon.must(client, folder)?;
        }
        std::thread::sleep(UPKEEP);
        anyhow::Ok((fresh, daemon.resident()?))
    };
    let (fresh, used) = measure(&Kind::Ours, &Client::Ours)?;
    let theirs = reference()
        .map(|(kind, client)| measure(&kind, &client))
        .transpose()?;
    let beside = theirs.map_or(String::new(), |(fresh, used)| {
        format!(" (BuildKit {:.0}, {:.0})", mib(fresh), mib(used))
    });
    Ok(vec![Row {
        what: "memory at rest: fresh, a minute after 20 builds".into(),
        figure: format!("{:.1}, {:.1} MiB{beside}", mib(fresh), mib(used)),
        goal: "at most 25 MiB".into(),
        is_met: used.max(fresh) <= 25 << 10,
    }])
}

/// A build of which everything is cached.
pub(super) fn served(folder: &Path) -> Result<Vec<Row>> {
    small(folder)?;
    let measure = |kind: &Kind, client: &Client| {
        let daemon = Daemon::start(kind)?;
        daemon.must(client, folder)?;
        daemon.must(client, folder)?;
        least_of(30, || Ok(()), || daemon.must(client, folder))
    };
    let ours = measure(&Kind::Ours, &Client::Ours)?;
    let mut rows = vec![Row {
        what: "12 steps, all cached, through a daemon".into(),
        figure: format!("{:.1} ms", millis(ours)),
        goal: "at most 20 ms".into(),
        is_met: millis(ours) <= 20.0,
    }];
    let both = reference()
        .map(|(kind, client)| anyhow::Ok((measure(&Kind::Ours, &client)?, measure(&kind, &client)?)))
        .transpose()?;
    rows.push(compared("the same with buildctl", both, |(ours, theirs)| {
        let figure = format!("{:.1} ms, BuildKit {:.1}", millis(ours), millis(theirs));
        (figure, "no slower than BuildKit's daemon", ours <= theirs)
    }));
    Ok(rows)
}

/// Bytes that cannot be compressed, different for each seed.
fn noise(path: &Path, seed: u64, bytes: usize) -> Result<()> {
    let mut file = fs::File::create(path)?;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut block = vec![0_u8; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let part = left.min(block.len());
        file.write_all(&block[..part])?;
        left -= part;
    }
    Ok(())
}

/// A context of 600 MB, new to the daemon and unchanged.
pub(super) fn sent(folder: &Path) -> Result<Vec<Row>> {
    fs::write(folder.join("Dockerfile"), "FROM scratch\nCOPY . /\n")?;
    for file in 0..SENT_FILES {
        noise(
            &folder.join(format!("f{file}")),
            file as u64 + 1,
            SENT / SENT_FILES,
        )?;
    }
    // What the disk still has to write would be measured with the first build.
    rustix::fs::sync();
    let measure = |kind: &Kind, client: &Client| {
        let (mut cold, mut same) = (Duration::MAX, Duration::MAX);
        for _ in 0..FEW {
            let daemon = Daemon::start(kind)?;
            let begun = Instant::now();
            daemon.must(client, folder)?;
            cold = cold.min(begun.elapsed());
            same = same.min(least(|| Ok(()), || daemon.must(client, folder))?);
            drop(daemon);
            rustix::fs::sync();
        }
        anyhow::Ok((cold, same))
    };
    let rate = |time: Duration| SENT as f64 / 1e6 / time.as_secs_f64();
    let (cold, same) = measure(&Kind::Ours, &Client::Ours)?;
    let both = reference()
        .map(|(kind, client)| anyhow::Ok((measure(&Kind::Ours, &client)?, measure(&kind, &client)?)))
        .transpose()?;
    let mut rows = vec![Row {
        what: "600 MB of context to a daemon, COPY".into(),
        figure: format!("{:.0} MB/s ({:.2} s)", rate(cold), cold.as_secs_f64()),
        goal: "a row below".into(),
        is_met: true,
    }];
    rows.push(compared(
        "the same over BuildKit's pair",
        both,
        |(_, (theirs, _))| {
            let ratio = theirs.as_secs_f64() / cold.as_secs_f64();
            let figure = format!("{ratio:.1} x its {:.0} MB/s", rate(theirs));
            (figure, "4 x or more", ratio >= 4.0)
        },
    ));
    rows.push(compared(
        "the same with buildctl",
        both,
        |((ours, _), (theirs, _))| {
            let figure = format!("{:.0} MB/s, BuildKit {:.0}", rate(ours), rate(theirs));
            (figure, "no slower than BuildKit's daemon", ours <= theirs)
        },
    ));
    rows.push(Row {
        what: "600 MB of context, unchanged".into(),
        figure: format!("{:.1} ms", millis(same)),
        goal: "at most 30 ms".into(),
        is_met: millis(same) <= 30.0,
    });
    rows.push(compared(
        "the same with buildctl",
        both,
        |((_, ours), (_, theirs))| {
            let figure = format!("{:.1} ms, BuildKit {:.1}", millis(ours), millis(theirs));
            (figure, "no slower than BuildKit's daemon", ours <= theirs)
        },
    ));
    Ok(rows)
}

/// 32 clients that ask for the same at once.
pub(super) fn same32(folder: &Path) -> Result<Vec<Row>> {
    let text = "FROM base\nRUN sleep 1\nCOPY a.txt /a\nRUN cat /a > /b\n";
    fs::write(folder.join("Dockerfile"), text)?;
    let measure = |kind: &Kind, client: &Client| {
        let daemon = Daemon::start(kind)?;
        let mut count = 0;
        least_of(
            FEW,
            || {
                count += 1;
                fs::write(folder.join("a.txt"), format!("{count}\n"))?;
                // Nothing of the time before may be found.
                let text = format!("FROM base\nRUN sleep 1; : {count}\nCOPY a.txt /a\nRUN cat /a > /b\n");
                Ok(fs::write(folder.join("Dockerfile"), text)?)
            },
            || daemon.must_all(client, folder, 32),
        )
    };
    let ours = measure(&Kind::Ours, &Client::Ours)?;
    let theirs = reference()
        .map(|(kind, client)| measure(&kind, &client))
        .transpose()?;
    let alone = Row {
        what: "32 equal clients, one step sleeps 1 s".into(),
        figure: format!("{:.2} s", ours.as_secs_f64()),
        goal: "at most 1.5 s".into(),
        is_met: ours.as_secs_f64() <= 1.5,
    };
    let row = compared("the same over BuildKit's", theirs, |theirs| {
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        let figure = format!("{ratio:.2} x its {:.2} s", theirs.as_secs_f64());
        (figure, "at most 0.5 x", ratio <= 0.5)
    });
    Ok(vec![alone, row])
}

/// Memory at both ends while a context of many files is sent.
pub(super) fn many(folder: &Path) -> Result<Vec<Row>> {
    for dir in 0..MANY / 100 {
        let dir = folder.join(format!("d{dir}"));
        fs::create_dir(&dir)?;
        for file in 0..100 {
            fs::write(
                dir.join(format!("f{file}")),
                format!("{} {file}\n", dir.display()),
            )?;
        }
    }
    fs::write(folder.join("Dockerfile"), "FROM scratch\nCOPY . /\n")?;
    let measure = |kind: &Kind, client: &Client| {
        let daemon = Daemon::start(kind)?;
        let begun = Instant::now();
        let peak = daemon.client_peak(client, folder)?;
        let cold = begun.elapsed();
        let same = least_of(FEW, || Ok(()), || daemon.must(client, folder))?;
        anyhow::Ok((daemon.peak()?, peak, cold, same))
    };
    let (daemon, client, cold, same) = measure(&Kind::Ours, &Client::Ours)?;
    let theirs = reference()
        .map(|(kind, client)| measure(&kind, &client))
        .transpose()?;
    let beside = |figure: String| match &theirs {
        Some(_) => format!(" (BuildKit {figure})"),
        None => String::new(),
    };
    let of = theirs.unwrap_or_default();
    Ok(vec![
        Row {
            what: "50,000 files to a daemon: its peak".into(),
            figure: format!("{:.0} MiB{}", mib(daemon), beside(format!("{:.0}", mib(of.0)))),
            goal: "at most 80 MiB".into(),
            is_met: daemon <= 80 << 10,
        },
        Row {
            what: "its client's peak".into(),
            figure: format!("{:.0} MiB{}", mib(client), beside(format!("{:.0}", mib(of.1)))),
            goal: "at most 40 MiB".into(),
            is_met: client <= 40 << 10,
        },
        Row {
            what: "its time".into(),
            figure: format!(
                "{:.2} s{}",
                cold.as_secs_f64(),
                beside(format!("{:.2}", of.2.as_secs_f64()))
            ),
            goal: "faster than BuildKit".into(),
            is_met: theirs.is_none() || cold < of.2,
        },
        Row {
            what: "the same, unchanged".into(),
            figure: format!("{:.0} ms{}", millis(same), beside(format!("{:.0}", millis(of.3)))),
            goal: "at most 400 ms".into(),
            is_met: millis(same) <= 400.0,
        },
    ])
}
