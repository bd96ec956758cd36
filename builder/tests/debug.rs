//! What a client needs to look into a build: what failed steps leave, and files of containers.

mod support;

use api::control::{DiskUsageRequest, PruneRequest};
use api::gateway::{self, result};
use llb::proto::MountType;
use prost::Message;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use support::containers::{ID, Open, can_run};
use support::{Client, Daemon, of};
use tonic::Status;

/// Solves a Dockerfile in the open build, to the end.
async fn solve(open: &Open, folder: &Path, dockerfile: &str) -> Result<String, Status> {
    // A build asks for each file once only.
    let name = oci::Digest::of(dockerfile.as_bytes()).hex();
    std::fs::write(folder.join("context").join(&name), dockerfile).expect("written");
    let request = gateway::SolveRequest {
        frontend: "dockerfile.v0".into(),
        frontend_opt: [("filename".to_owned(), name)].into(),
        evaluate: true,
        ..gateway::SolveRequest::default()
    };
    let solved = open.client.bridge().solve(of(ID, request)).await?;
    match solved.into_inner().result.and_then(|result| result.result) {
        Some(result::Result::Ref(one)) => Ok(one.id),
        other => panic!("it has one ref, not {other:?}"),
    }
}

/// The Solve detail of an error.
fn detail(status: &Status) -> Value {
    let status = api::rpc::Status::decode(status.details()).expect("details");
    let detail = status
        .details
        .iter()
        .find(|detail| detail.type_url.ends_with("errdefs.Solve+json"));
    serde_json::from_slice(&detail.expect("a failed step is told").value).expect("it is JSON")
}

async fn records(open: &Open) -> Vec<String> {
    let usage = open
        .client
        .control()
        .disk_usage(DiskUsageRequest::default())
        .await;
    let records = usage.expect("told").into_inner().record;
    records.into_iter().map(|record| record.description).collect()
}

fn is_left(records: &[String]) -> usize {
    let left = records.iter().filter(|what| what.contains("false-step"));
    left.count()
}

/// Returns when nothing of a failed step is left.
async fn gone(client: &Client) {
    for _ in 0..600 {
        let usage = client.control().disk_usage(DiskUsageRequest::default()).await;
        let records = usage.expect("told").into_inner().record;
        let records: Vec<_> = records.into_iter().map(|one| one.description).collect();
        if is_left(&records) == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("what a failed step left is there after its build");
}

const SHELL: &str = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_container_starts_on_what_a_failed_step_left() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let open = Open::new(&daemon, folder.path()).await;
    let text = format!(
        "{SHELL}RUN --mount=type=tmpfs,target=/t --mount=target=/m,rw \
         echo wrote > /wrote && echo also > /m/also && false-step\n"
    );
    let status = solve(&open, folder.path(), &text).await.expect_err("it fails");
    assert!(
        status.message().contains("exit code: 127"),
        "{}",
        status.message()
    );
    let detail = detail(&status);
    let mounts = detail["op"]["exec"]["mounts"]
        .as_array()
        .expect("an exec")
        .clone();
    let ids = |name: &str| -> Vec<String> {
        let list = detail[name].as_array().expect("a list");
        list.iter()
            .map(|id| id.as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let (found, left) = (ids("inputIDs"), ids("mountIDs"));
    assert_eq!((found.len(), left.len()), (mounts.len(), mounts.len()));
    assert_eq!(
        detail["description"]["com.docker.dockerfile.v1.command"].as_str(),
        Some(text.lines().last().expect("it has lines"))
    );

    // Both states can be entered, with the mounts of the step.
    let request = |id: &str, ids: &[String]| {
        let mut request = open.request(id);
        request.mounts = mounts
            .iter()
            .zip(ids)
            .map(|(mount, id)| llb::proto::Mount {
                dest: mount["dest"].as_str().expect("a place").into(),
                selector: mount["selector"].as_str().unwrap_or_default().into(),
                mount_type: i32::try_from(mount["mountType"].as_i64().unwrap_or_default()).expect("small"),
                result_id: id.clone(),
                ..<_>::default()
            })
            .collect();
        request
    };
    open.create(request("after", &left)).await.expect("what it left");
    open.create(request("before", &found))
        .await
        .expect("what it found");
    let mut all = open.exec().await;
    let script = "busybox cat /wrote /m/also /m/file; busybox touch /more";
    all.start("after", "after", script, false).await;
    assert_eq!(all.code("after").await, 0);
    assert_eq!(all.said("after", 1), "wrote\nalso\ncontent\n");
    all.start("before", "before", "busybox ls /wrote /m", false).await;
    assert_ne!(all.code("before").await, 0);
    assert!(
        !all.said("before", 1).contains("also"),
        "{}",
        all.said("before", 1)
    );
    // What is done in there is not kept: another container begins where the step ended.
    open.create(request("again", &left)).await.expect("once more");
    all.start("again", "again", "test ! -e /more && busybox cat /wrote", false)
        .await;
    assert_eq!(all.code("again").await, 0);
    // Nothing takes it away before the build ends.
    let mut control = open.client.control();
    let pruned = control
        .prune(PruneRequest {
            all: true,
            ..PruneRequest::default()
        })
        .await;
    let mut pruned = pruned.expect("it prunes").into_inner();
    while let Some(record) = pruned.message().await.expect("told") {
        assert!(
            !record.description.contains("false-step"),
            "{}",
            record.description
        );
    }
    open.create(request("kept", &left))
        .await
        .expect("it is still there");

    let client = daemon.client().await;
    assert_eq!(is_left(&records(&open).await), 2, "what it wrote to two mounts");
    open.end().await;
    drop(all);
    gone(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_which_part_of_which_op_it_was() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let open = Open::new(&daemon, folder.path()).await;
    let status = solve(&open, folder.path(), &format!("{SHELL}COPY nothing /\n"))
        .await
        .expect_err("it fails");
    let told = detail(&status);
    assert_eq!(told["cache"]["index"], 1, "{told}");
    assert_eq!(told["inputIDs"].as_array().map(Vec::len), Some(1), "{told}");
    assert!(
        told["op"]["file"]["actions"][0]["copy"]["src"].is_string(),
        "{told}"
    );

    let text = format!("{SHELL}COPY file /a\nCOPY --chown=app file /bin/busybox/b\n");
    let status = solve(&open, folder.path(), &text).await.expect_err("it fails");
    let told = detail(&status);
    assert_eq!(told["file"]["index"], 0, "{told}");
    let owner = &told["op"]["file"]["actions"][0]["copy"]["owner"];
    assert_eq!(owner["user"]["byName"]["name"], "app", "{told}");
    let ids: HashMap<_, _> = ["inputIDs", "mountIDs"]
        .map(|name| (name, told[name].clone()))
        .into();
    assert_eq!(ids["inputIDs"].as_array().map(Vec::len), Some(2), "{told}");
    let base = ids["mountIDs"][0].as_str().expect("what it began with");
    let mut request = open.request("base");
    request.mounts[0].result_id = base.to_owned();
    open.create(request).await.expect("it can be entered");
    let mut all = open.exec().await;
    all.start("p", "base", "busybox cat /a", false).await;
    assert_eq!(all.code("p").await, 0);
    assert_eq!(all.said("p", 1), "content\n");
    open.end().await;
}

/// Looks at files of a container's mounts.
struct Look<'a> {
    open: &'a Open,
    container: &'a str,
}

impl Look<'_> {
    async fn read(&self, mount_index: i32, path: &str) -> Result<String, Status> {
        let request = gateway::ReadFileRequest {
            r#ref: self.container.into(),
            file_path: path.into(),
            mount_index,
            ..<_>::default()
        };
        let read = self
            .open
            .client
            .bridge()
            .read_file_container(of(ID, request))
            .await?;
        Ok(String::from_utf8_lossy(&read.into_inner().data).into_owned())
    }

    async fn list(&self, mount_index: i32, path: &str, pattern: &str) -> Result<Vec<String>, Status> {
        let request = gateway::ReadDirRequest {
            r#ref: self.container.into(),
            dir_path: path.into(),
            include_pattern: pattern.into(),
            mount_index,
        };
        let listed = self
            .open
            .client
            .bridge()
            .read_dir_container(of(ID, request))
            .await?;
        Ok(listed
            .into_inner()
            .entries
            .into_iter()
            .map(|stat| stat.path)
            .collect())
    }

    /// Name, mode and what it links to.
    async fn stat(&self, mount_index: i32, path: &str) -> Result<(String, u32, String), Status> {
        let request = gateway::StatFileRequest {
            r#ref: self.container.into(),
            path: path.into(),
            mount_index,
        };
        let stat = self
            .open
            .client
            .bridge()
            .stat_file_container(of(ID, request))
            .await?;
        let stat = stat.into_inner().stat.expect("it is told");
        Ok((stat.path, stat.mode, stat.linkname))
    }
}

/// A container with a cache, a tmpfs and a secret that is not there.
fn with_mounts(open: &Open) -> gateway::NewContainerRequest {
    let mut request = open.request("c");
    let mut mount = |dest: &str, kind: MountType| {
        request.mounts.push(llb::proto::Mount {
            dest: dest.into(),
            mount_type: kind.into(),
            cache_opt: (kind == MountType::Cache).then(|| llb::proto::CacheOpt {
                id: "kept".into(),
                sharing: 0,
            }),
            tmpfs_opt: (kind == MountType::Tmpfs).then(llb::proto::TmpfsOpt::default),
            secret_opt: (kind == MountType::Secret).then(|| llb::proto::SecretOpt {
                id: "s".into(),
                optional: true,
                ..<_>::default()
            }),
            ..<_>::default()
        });
    };
    mount("/cache", MountType::Cache);
    mount("/tmp", MountType::Tmpfs);
    mount("/secret", MountType::Secret);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_container_are_told_mount_by_mount() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let open = Open::new(&daemon, folder.path()).await;
    let request = with_mounts(&open);
    open.create(request).await.expect("it is made");
    let look = Look {
        open: &open,
        container: "c",
    };
    // Before anything runs.
    assert_eq!(look.list(0, "/bin", "").await.expect("listed"), ["busybox", "sh"]);
    let (name, mode, _) = look.stat(0, "/bin/sh").await.expect("it is there");
    assert_eq!((name.as_str(), mode & 0o111), ("sh", 0o111));
    // What a process writes is seen while it runs.
    let script = "cd /; busybox mkdir -p d/e; echo inside > d/e/file; echo far > top
        busybox ln -s e/file d/near; busybox ln -s ../../../etc/passwd d/out; busybox ln -s /top d/absolute
        busybox ln -s loop d/loop; busybox rm /bin/busybox
        echo kept > /cache/file; echo gone > /tmp/file; echo up; read end";
    let mut all = open.exec().await;
    all.start("p", "c", script, false).await;
    all.hears("p", "up").await;
    assert_eq!(look.read(0, "/d/near").await.expect("a link inside"), "inside\n");
    assert_eq!(look.list(0, "/d", "l*").await.expect("listed"), ["loop"]);
    assert_eq!(
        look.list(0, "/bin", "").await.expect("listed"),
        ["sh"],
        "what is removed is not there"
    );
    assert_eq!(look.read(1, "/file").await.expect("of the cache"), "kept\n");
    assert_eq!(
        look.list(2, "/", "").await.expect("a tmpfs"),
        Vec::<String>::new()
    );
    assert_eq!(
        look.list(0, "/cache", "").await.expect("beneath the mount"),
        Vec::<String>::new()
    );
    // Links that lead out are told, not followed.
    for (name, target) in [("out", "../../../etc/passwd"), ("absolute", "/top")] {
        let path = format!("/d/{name}");
        let (found, mode, link) = look.stat(0, &path).await.expect("the link itself");
        assert_eq!((found.as_str(), link.as_str()), (name, target));
        assert_ne!(mode & (1 << 27), 0, "a link as Go has it");
        let refused = look.read(0, &path).await.expect_err("it leads out");
        assert!(refused.message().contains("escapes"), "{}", refused.message());
    }
    let wrong = [
        (
            look.read(0, "/d/loop").await.expect_err("no end"),
            "too many levels",
        ),
        (look.read(0, "/nothing").await.expect_err("none"), "no such file"),
        (
            look.read(0, "/d").await.expect_err("a directory"),
            "is a directory",
        ),
        (
            look.read(0, "d/e/file").await.expect_err("no root"),
            "relative to /",
        ),
        (look.read(3, "/").await.expect_err("a secret"), "secret"),
        (
            look.read(4, "/x").await.expect_err("no mount"),
            "out of bounds (4 available)",
        ),
        (look.read(-1, "/x").await.expect_err("no mount"), "out of bounds"),
        (
            look.list(0, "/top", "").await.expect_err("a file"),
            "not a directory",
        ),
    ];
    for (status, text) in wrong {
        assert!(status.message().contains(text), "{text}: {}", status.message());
    }
    all.write("p", "\n", true).await;
    assert_eq!(all.code("p").await, 0);
    // Also after its end.
    assert_eq!(look.read(0, "/top").await.expect("it is kept"), "far\n");
    let gone = Look {
        open: &open,
        container: "nobody",
    };
    assert!(
        gone.read(0, "/top")
            .await
            .expect_err("none")
            .message()
            .contains("not found")
    );
    drop(all);
    open.end().await;
}
