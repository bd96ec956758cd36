//! Folders of blobs as the stores of a caller in this process: `<folder>/blobs/sha256/<hex>`.
//!
//! Blobs are written aside and renamed when their digest is the one that was said.
use crate::caller::{SessionError, Upload};
use oci::{Digest, DigestWriter};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use tokio::io::AsyncReadExt;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

fn path(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join("blobs/sha256").join(digest.hex())
}

fn refused(doing: &str, digest: &Digest, reason: impl ToString) -> SessionError {
    SessionError::Refused {
        doing: format!("{doing} blob {digest}"),
        reason: reason.to_string(),
    }
}

/// A blob; `None` where there is none.
pub(crate) async fn read(folder: &Path, digest: &Digest) -> Result<Option<Upload>, SessionError> {
    match tokio::fs::File::open(path(folder, digest)).await {
        Ok(file) => Ok(Some(Box::new(file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(refused("open", digest, error)),
    }
}

/// Writes a blob, unless it is there.
pub(crate) async fn write(
    folder: &Path,
    digest: &Digest,
    size: u64,
    mut contents: Upload,
) -> Result<(), SessionError> {
    let target = path(folder, digest);
    if fs::metadata(&target).is_ok_and(|found| found.len() == size) {
        return Ok(());
    }
    let failed = |error: io::Error| refused("write", digest, error);
    let parent = target.parent().expect("a blob lies in a folder");
    fs::create_dir_all(parent).map_err(failed)?;
    let aside = folder.join("ingest");
    fs::create_dir_all(&aside).map_err(failed)?;
    let aside = NamedTempFile::new_in(&aside).map_err(failed)?;
    let mut writer = DigestWriter::new(aside);
    let mut chunk = vec![0; CHUNK];
    loop {
        let bytes = contents.read(&mut chunk).await.map_err(failed)?;
        if bytes == 0 {
            break;
        }
        // A file of this machine: no slower than handing each piece to another thread.
        writer.write_all(&chunk[..bytes]).map_err(failed)?;
    }
    let (aside, found, written) = writer.finish();
    if found != *digest || written != size {
        let reason = format!("what came is {found} of {written} bytes, not of {size}");
        return Err(refused("write", digest, reason));
    }
    keep(&aside, &target).map_err(failed)
}

/// Readable for others, as what a shell writes.
fn keep(aside: &NamedTempFile, target: &Path) -> io::Result<()> {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    File::set_permissions(aside.as_file(), mode)?;
    fs::hard_link(aside.path(), target).or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => fs::rename(aside.path(), target),
        _ => fs::copy(aside.path(), target).map(drop),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(bytes: &'static [u8]) -> Upload {
        Box::new(bytes)
    }

    #[tokio::test]
    async fn what_is_written_is_read_and_a_wrong_digest_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let digest = Digest::of(b"blob");
        assert!(read(folder.path(), &digest).await.expect("looked").is_none());
        let wrong = write(folder.path(), &digest, 5, upload(b"other")).await;
        assert!(wrong.expect_err("refused").to_string().contains("what came is"));
        assert!(read(folder.path(), &digest).await.expect("looked").is_none());
        for _ in 0..2 {
            write(folder.path(), &digest, 4, upload(b"blob"))
                .await
                .expect("written");
        }
        // One that was cut short by a crash is made whole.
        fs::write(path(folder.path(), &digest), b"bl").expect("cut");
        write(folder.path(), &digest, 4, upload(b"blob"))
            .await
            .expect("written");
        let mut found = Vec::new();
        let stream = read(folder.path(), &digest).await.expect("read");
        stream
            .expect("there")
            .read_to_end(&mut found)
            .await
            .expect("bytes");
        assert_eq!(found, b"blob");
        let left = fs::read_dir(folder.path().join("ingest"))
            .expect("a folder")
            .count();
        assert_eq!(left, 0);
    }
}
