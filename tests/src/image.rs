//! An image as it came out: config, history, and the file system its layers make, read by code of its own.
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{Cursor, Read},
    path::Path,
};

/// One path of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `-`, `d`, `l`, `p`, `c` or `b`.
    pub kind: char,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// User and group.
    pub owner: (u64, u64),
    /// Contents of a file, target of a link.
    pub content: Vec<u8>,
    /// Seconds since 1970.
    pub mtime: u64,
    /// The layer it came with, from 0.
    pub layer: usize,
}

/// An image read from an OCI archive.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its manifest.
    pub manifest: Value,
    /// Its config.
    pub config: Value,
    /// Its files by path, no slash in front.
    pub tree: BTreeMap<String, Node>,
    /// Paths per layer as their tars list them.
    pub layers: Vec<Vec<String>>,
    /// The digest of the manifest.
    pub digest: String,
}

impl Image {
    /// Reads the first image of an OCI archive (a tar).
    ///
    /// # Errors
    /// For what is no image, or one whose digests do not hold.
    pub fn open(path: &Path) -> Result<Image> {
        let mut blobs = BTreeMap::new();
        let mut archive = tar::Archive::new(File::open(path).with_context(|| path.display().to_string())?);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let name = entry.path()?.display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            blobs.insert(name, bytes);
        }
        Image::read(&|name| {
            blobs
                .get(name)
                .cloned()
                .with_context(|| format!("no {name} in the archive"))
        })
    }

    /// Reads the first image of an OCI layout directory.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn open_layout(folder: &Path) -> Result<Image> {
        Image::read(&|name| std::fs::read(folder.join(name)).with_context(|| name.to_owned()))
    }

    fn read(file: &dyn Fn(&str) -> Result<Vec<u8>>) -> Result<Image> {
        let blob = |descriptor: &Value| -> Result<Vec<u8>> {
            let digest = descriptor["digest"]
                .as_str()
                .context("a descriptor has a digest")?;
            let bytes = file(&format!("blobs/{}", digest.replace(':', "/")))?;
            let found = format!(
                "sha256:{}",
                hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes))
            );
            if found != digest || descriptor["size"].as_u64() != Some(bytes.len() as u64) {
                bail!("{digest} has {} bytes of digest {found}", bytes.len());
            }
            Ok(bytes)
        };
        let index: Value = serde_json::from_slice(&file("index.json")?)?;
        let mut descriptor = index["manifests"][0].clone();
        let mut manifest: Value = serde_json::from_slice(&blob(&descriptor)?)?;
        if manifest["manifests"].is_array() {
            descriptor = manifest["manifests"][0].clone();
            manifest = serde_json::from_slice(&blob(&descriptor)?)?;
        }
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])?)?;
        let mut image = Image {
            digest: descriptor["digest"].as_str().unwrap_or_default().to_owned(),
            config,
            tree: BTreeMap::new(),
            layers: Vec::new(),
            manifest,
        };
        let layers = image.manifest["layers"].as_array().cloned().unwrap_or_default();
        for (number, layer) in layers.iter().enumerate() {
            let packed = blob(layer)?;
            let media_type = layer["mediaType"].as_str().unwrap_or_default();
            let mut plain = Vec::new();
            match media_type.rsplit(['+', '.']).next() {
                Some("gzip") => drop(flate2::read::MultiGzDecoder::new(&packed[..]).read_to_end(&mut plain)?),
                Some("zstd") => plain = zstd::decode_all(&packed[..])?,
                _ => plain = packed,
            }
            let diff_id = format!(
                "sha256:{}",
                hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&plain))
            );
            if image.config["rootfs"]["diff_ids"][number].as_str() != Some(&diff_id) {
                bail!(
                    "layer {number} has diff id {diff_id}, the config says {}",
                    image.config["rootfs"]["diff_ids"]
                );
            }
            image.apply(&plain, number)?;
        }
        Ok(image)
    }

    fn apply(&mut self, plain: &[u8], layer: usize) -> Result<()> {
        let mut listed = Vec::new();
        let mut archive = tar::Archive::new(Cursor::new(plain));
        for entry in archive.entries()? {
            let mut entry = entry?;
            let raw = entry.path_bytes().into_owned();
            let shown = String::from_utf8_lossy(&raw).trim_start_matches("./").to_owned();
            listed.push(shown.clone());
            let path = shown.trim_end_matches('/').to_owned();
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
            if let Some(deleted) = name.strip_prefix(".wh.") {
                let target = if folder.is_empty() {
                    deleted.to_owned()
                } else {
                    format!("{folder}/{deleted}")
                };
                let below = format!("{target}/");
                self.tree
                    .retain(|path, _| *path != target && !path.starts_with(&below));
                continue;
            }
            let header = entry.header().clone();
            let link = entry
                .link_name_bytes()
                .map(|link| link.into_owned())
                .unwrap_or_default();
            let kind = match header.entry_type() {
                tar::EntryType::Directory => 'd',
                tar::EntryType::Symlink => 'l',
                tar::EntryType::Fifo => 'p',
                tar::EntryType::Char => 'c',
                tar::EntryType::Block => 'b',
                tar::EntryType::Link => {
                    let target = String::from_utf8_lossy(&link).trim_start_matches('/').to_owned();
                    let mut node = self
                        .tree
                        .get(&target)
                        .cloned()
                        .with_context(|| format!("hard link to {target}"))?;
                    node.layer = layer;
                    self.tree.insert(path, node);
                    continue;
                }
                _ => '-',
            };
            let mut content = link;
            if kind == '-' {
                content.clear();
                entry.read_to_end(&mut content)?;
            }
            if kind != 'd' {
                let below = format!("{path}/");
                self.tree.retain(|other, _| !other.starts_with(&below));
            }
            let node = Node {
                kind,
                mode: header.mode()? & 0o7777,
                owner: (header.uid()?, header.gid()?),
                content,
                mtime: header.mtime()?,
                layer,
            };
            self.tree.insert(path, node);
        }
        self.layers.push(listed);
        Ok(())
    }

    /// The tree as lines `kind mode uid:gid path content`, of layers from `first` on.
    pub fn listing(&self, first: usize) -> String {
        let mut text = String::new();
        for (path, node) in self.tree.iter().filter(|(_, node)| node.layer >= first) {
            let content = match (node.kind, std::str::from_utf8(&node.content)) {
                ('-', Ok(content)) if content.len() <= 200 => format!(" {content:?}"),
                ('-', _) => format!(" {} bytes", node.content.len()),
                ('l', _) => format!(" -> {}", String::from_utf8_lossy(&node.content)),
                _ => String::new(),
            };
            let _ = writeln!(
                text,
                "{} {:04o} {}:{} /{path}{content}",
                node.kind, node.mode, node.owner.0, node.owner.1
            );
        }
        text
    }

    /// The history as lines: `created_by`, with `(empty)` where no layer belongs to it.
    pub fn history(&self) -> String {
        let mut text = String::new();
        for entry in self.config["history"].as_array().into_iter().flatten() {
            let empty = if entry["empty_layer"] == true {
                " (empty)"
            } else {
                ""
            };
            let _ = writeln!(
                text,
                "{}{empty}",
                entry["created_by"].as_str().unwrap_or_default()
            );
        }
        text
    }
}
