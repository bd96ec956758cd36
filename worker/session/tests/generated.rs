//! `src/generated/` is what protox and tonic-prost-build make of `proto/`: no protoc, no build script.
use std::path::Path;

const FILES: [&str; 7] = [
    "filesync.proto",
    "fsutil.proto",
    "secrets.proto",
    "ssh.proto",
    "upload.proto",
    "exporter.proto",
    "content.proto",
];

#[test]
fn generated_code_matches_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(FILES, [root.join("proto")]).expect("the files compile");
    let out = tempfile::tempdir().expect("a temporary directory");
    tonic_prost_build::configure()
        .out_dir(out.path())
        .btree_map(".")
        .bytes(".")
        .compile_fds(descriptors)
        .expect("code generation succeeds");
    let checked_in = root.join("src/generated");
    for entry in std::fs::read_dir(out.path()).expect("generated files") {
        let entry = entry.expect("a generated file");
        let fresh = std::fs::read_to_string(entry.path()).expect("generated text");
        let kept = checked_in.join(entry.file_name());
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            std::fs::write(&kept, &fresh).expect("the file can be written");
        }
        let now = std::fs::read_to_string(&kept).unwrap_or_default();
        assert!(now == fresh, "{} differs from what proto/ gives", kept.display());
    }
}
