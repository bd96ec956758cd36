//! What one build costs without a daemon.
use super::{Row, binary, least, millis};
use anyhow::{Context, Result, ensure};
use cache::layer::{Level, compress};
use oci::Compression;
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::{Program, User, fixtures};

/// Builds `folder` with its store beside it.
fn build(folder: &Path, args: &[&str]) -> Result<()> {
    binary()?;
    let program = Program::new(&folder.join("store"), User::Same);
    let base = format!("base=oci-layout://{}", fixtures().join("bases/busybox").display());
    let mut all = vec!["build", "--progress=quiet", "--build-context", &base];
    all.extend(args);
    all.push("context");
    let mut command = program.command(&all);
    let output = command
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .context("start the program")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn write(folder: &Path, dockerfile: &str) -> Result<()> {
    fs::create_dir_all(folder.join("context"))?;
    fs::write(folder.join("context/Dockerfile"), dockerfile)?;
    Ok(())
}

fn empty_store(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder.join("store")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Nothing is packed: what an export costs is measured elsewhere.
const STEPS_ONLY: &[&str] = &["-o", "type=cacheonly"];

/// The time per step of `count` instructions, cold, without what a build of none of them takes.
fn per_step(folder: &Path, count: u32, instruction: impl Fn(u32) -> String) -> Result<Duration> {
    write(folder, "FROM base\nRUN true\n")?;
    let without = least(|| empty_store(folder), || build(folder, STEPS_ONLY))?;
    let mut text = "FROM base\nRUN true\n".to_owned();
    for n in 0..count {
        writeln!(text, "{}", instruction(n))?;
    }
    write(folder, &text)?;
    let with = least(|| empty_store(folder), || build(folder, STEPS_ONLY))?;
    Ok(with.saturating_sub(without) / count)
}

pub(super) fn run_step(folder: &Path) -> Result<Vec<Row>> {
    const STEPS: u32 = 30;
    let step = per_step(folder, STEPS, |n| format!("RUN : {n}"))?;
    let bare = least(
        || Ok(()),
        || {
            for _ in 0..STEPS {
                ensure!(Command::new("/bin/true").status()?.success(), "true fails");
            }
            Ok(())
        },
    )? / STEPS;
    let over = step.saturating_sub(bare);
    Ok(vec![Row {
        what: "a trivial RUN over fork and exec".into(),
        figure: format!(
            "{:.2} ms ({:.2} - {:.2})",
            millis(over),
            millis(step),
            millis(bare)
        ),
        goal: "at most 10 ms".into(),
        is_met: millis(over) <= 10.0,
    }])
}

pub(super) fn cached(folder: &Path) -> Result<Vec<Row>> {
    let mut text =
        "FROM base AS first\nWORKDIR /work\nENV A=1\nCOPY a.txt .\nRUN echo 1 > one\nRUN echo 2 > two\n"
            .to_owned();
    text.push_str("FROM base\nENV B=2\nCOPY --from=first /work /work\nWORKDIR /work\nRUN cat one two > three\nCMD [\"cat\", \"three\"]\n");
    write(folder, &text)?;
    fs::write(folder.join("context/a.txt"), "a\n")?;
    build(folder, &["-t", "cached"])?;
    let time = least(|| Ok(()), || build(folder, &["-t", "cached"]))?;
    let bare = least(
        || Ok(()),
        || Command::new("/bin/true").status().map(|_| ()).map_err(Into::into),
    )?;
    Ok(vec![Row {
        what: "12 steps, all cached, image named".into(),
        figure: format!(
            "{:.1} ms ({:.0} x fork and exec)",
            millis(time),
            time.as_secs_f64() / bare.as_secs_f64()
        ),
        goal: "at most 25 ms".into(),
        is_met: millis(time) <= 25.0,
    }])
}

pub(super) fn copy_step(folder: &Path) -> Result<Vec<Row>> {
    const STEPS: u32 = 100;
    fs::create_dir_all(folder.join("context"))?;
    for n in 0..STEPS {
        fs::write(folder.join(format!("context/f{n}")), format!("{n}\n"))?;
    }
    let step = per_step(folder, STEPS, |n| format!("COPY f{n} /f{n}"))?;
    Ok(vec![Row {
        what: "a COPY of a small file".into(),
        figure: format!("{:.2} ms", millis(step)),
        goal: "at most 1 ms".into(),
        is_met: millis(step) <= 1.0,
    }])
}

/// Libraries of this machine, as a layer would hold them.
fn real_data() -> Result<Vec<u8>> {
    const WANTED: usize = 128 << 20;
    let mut data = Vec::with_capacity(WANTED);
    let mut open = vec![PathBuf::from("/usr/lib"), PathBuf::from("/usr/bin")];
    while let (Some(folder), true) = (open.pop(), data.len() < WANTED) {
        let Ok(entries) = fs::read_dir(folder) else {
            continue;
        };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::path);
        for entry in entries {
            match entry.file_type()? {
                kind if kind.is_dir() => open.push(entry.path()),
                kind if kind.is_file() && data.len() < WANTED => {
                    if let Ok(bytes) = fs::read(entry.path()) {
                        data.extend_from_slice(&bytes);
                    }
                }
                _ => {}
            }
        }
    }
    data.truncate(WANTED);
    ensure!(data.len() > 16 << 20, "there are too few files on this machine");
    Ok(data)
}

pub(super) fn gzip(_: &Path) -> Result<Vec<Row>> {
    let data = real_data()?;
    let mut size = 0;
    let ours = least(
        || Ok(()),
        || {
            let made = compress(&data[..], std::io::sink(), Compression::Gzip, Level::Default)?;
            size = made.size;
            Ok(())
        },
    )?;
    // Level 6 of zlib is what Go's standard library makes in size; its speed is a third to a half of this one.
    let begun = Instant::now();
    let mut reference = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    reference.write_all(&data)?;
    let reference_size = reference.finish()?.len() as u64;
    let reference_time = begun.elapsed();
    let rate = |time: Duration| data.len() as f64 / 1e6 / time.as_secs_f64();
    let cores = std::thread::available_parallelism()?.get() as f64;
    Ok(vec![Row {
        what: "gzip of a layer on all cores".into(),
        figure: format!(
            "{:.0} MB/s, size {:.3} x ({:.0} MB/s zlib -6)",
            rate(ours),
            size as f64 / reference_size as f64,
            rate(reference_time)
        ),
        goal: "65 MB/s per core or more, no larger than -6".into(),
        is_met: rate(ours) >= 65.0 * cores && size <= reference_size,
    }])
}

pub(super) fn context(folder: &Path) -> Result<Vec<Row>> {
    const FILES: usize = 50_000;
    for dir in 0..FILES / 100 {
        let dir = folder.join(format!("context/d{dir}"));
        fs::create_dir_all(&dir)?;
        for file in 0..100 {
            fs::write(
                dir.join(format!("f{file}")),
                format!("{} {file}\n", dir.display()),
            )?;
        }
    }
    write(folder, "FROM scratch\nCOPY . /\n")?;
    // What is younger than the clock's tick is never trusted; the second build sees old files.
    for _ in 0..2 {
        build(folder, &[])?;
    }
    let time = least(|| Ok(()), || build(folder, &[]))?;
    Ok(vec![Row {
        what: "a context of 50,000 files, unchanged".into(),
        figure: format!("{:.0} ms", millis(time)),
        goal: "at most 200 ms".into(),
        is_met: millis(time) <= 200.0,
    }])
}

pub(super) fn memory(folder: &Path) -> Result<Vec<Row>> {
    write(folder, "FROM scratch\nCOPY big /\n")?;
    let mut big = std::io::BufWriter::new(fs::File::create(folder.join("context/big"))?);
    let mut state = 1_u64;
    let mut block = vec![0_u8; 1 << 20];
    for _ in 0..1024 {
        for word in block.chunks_exact_mut(8) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&state.to_le_bytes());
        }
        big.write_all(&block)?;
    }
    big.flush()?;
    binary()?;
    let program = Program::new(&folder.join("store"), User::Same);
    let mut command = program.command(&["build", "--progress=quiet", "-t", "big", "context"]);
    let mut child = command
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let begun = Instant::now();
    let mut peak = 0_u64;
    let ended = loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let found = text.lines().find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .trim()
                .strip_suffix(" kB")?
                .trim()
                .parse()
                .ok()
        });
        peak = peak.max(found.unwrap_or(0));
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    ensure!(ended.success(), "the build failed");
    Ok(vec![Row {
        what: "peak memory, a context file of 1 GiB, packed".into(),
        figure: format!(
            "{:.0} MiB in {:.1} s",
            peak as f64 / 1024.0,
            begun.elapsed().as_secs_f64()
        ),
        goal: "at most 100 MiB".into(),
        is_met: peak <= 100 << 10,
    }])
}

pub(super) fn wide(folder: &Path) -> Result<Vec<Row>> {
    let mut text = String::new();
    for n in 0..12 {
        writeln!(text, "FROM base AS s{n}\nRUN sleep 1 && echo {n} > /out{n}")?;
    }
    text.push_str("FROM base\n");
    for n in 0..12 {
        writeln!(text, "COPY --from=s{n} /out{n} /")?;
    }
    write(folder, &text)?;
    let begun = Instant::now();
    build(folder, &[])?;
    let time = begun.elapsed();
    Ok(vec![Row {
        what: "12 stages that sleep 1 s, joined by COPY".into(),
        figure: format!("{:.2} s", time.as_secs_f64()),
        goal: "at most 1.2 s".into(),
        is_met: time.as_secs_f64() <= 1.2,
    }])
}
