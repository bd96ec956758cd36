//! One entry as canonical tar blocks: the same entry always gives the same bytes.
//!
//! ```text
//! entry ─▶ [PAX record block(s), only when something does not fit] ─▶ ustar header
//! ```
//!
//! Times in whole seconds, no access or change time, no owner names, mode bits only, directories end in `/`.
//! PAX records (sorted by key) only for long or non-ASCII paths and link targets, sizes, ids and times that octal
//! fields cannot hold, and `security.capability`. No other extended attribute is written.
//! Deletions are empty files `.wh.<name>` with mode, owner and time 0.

use tree::{Entry, Kind, RootPath, Timestamp};

pub(super) const BLOCK: usize = 512;
/// Prefix of the name of a deletion.
pub(super) const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Name that makes its directory opaque.
pub(super) const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
/// The one extended attribute that layers carry.
pub(super) const CAPABILITY: &[u8] = b"security.capability";
const OCTAL_8: u64 = 0o7_777_777;
const OCTAL_12: u64 = 0o77_777_777_777;

/// What a header says besides its path, in tar's own terms.
pub(super) struct Fields<'a> {
    pub(super) path: &'a [u8],
    pub(super) link: &'a [u8],
    pub(super) typeflag: u8,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime_secs: i64,
    pub(super) rdev: (u32, u32),
    pub(super) capability: Option<&'a [u8]>,
}

/// The header blocks of an entry.
pub(super) fn encode_entry(entry: &Entry) -> Vec<u8> {
    let mut path = entry.path.as_bytes().to_vec();
    if entry.kind == Kind::Dir {
        path.push(b'/');
    }
    encode(&Fields {
        path: &path,
        link: entry.link.as_deref().unwrap_or_default(),
        typeflag: typeflag(entry.kind),
        mode: entry.mode & 0o7777,
        uid: entry.uid.into(),
        gid: entry.gid.into(),
        size: if entry.kind == Kind::File { entry.size } else { 0 },
        mtime_secs: entry.mtime.secs,
        rdev: entry.rdev,
        capability: entry.xattrs.get(CAPABILITY).map(Vec::as_slice),
    })
}

/// The header block of a deletion.
pub(super) fn encode_whiteout(path: &RootPath) -> Vec<u8> {
    let mut full = path.parent_bytes().unwrap_or_default().to_vec();
    if !full.is_empty() {
        full.push(b'/');
    }
    full.extend_from_slice(WHITEOUT_PREFIX);
    full.extend_from_slice(path.file_name().unwrap_or_default());
    encode(&Fields {
        path: &full,
        link: &[],
        typeflag: b'0',
        mode: 0,
        uid: 0,
        gid: 0,
        size: 0,
        mtime_secs: 0,
        rdev: (0, 0),
        capability: None,
    })
}

pub(super) fn typeflag(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::Char => b'3',
        Kind::Block => b'4',
        Kind::Dir => b'5',
        Kind::Fifo => b'6',
    }
}

pub(super) fn encode(fields: &Fields<'_>) -> Vec<u8> {
    let mut records: Vec<(&str, Vec<u8>)> = Vec::new();
    if let Some(capability) = fields.capability {
        records.push(("SCHILY.xattr.security.capability", capability.to_vec()));
    }
    if fields.gid > OCTAL_8 {
        records.push(("gid", fields.gid.to_string().into_bytes()));
    }
    if needs_record(fields.link) {
        records.push(("linkpath", fields.link.to_vec()));
    }
    if !u64::try_from(fields.mtime_secs).is_ok_and(|secs| secs <= OCTAL_12) {
        records.push(("mtime", fields.mtime_secs.to_string().into_bytes()));
    }
    if needs_record(fields.path) {
        records.push(("path", fields.path.to_vec()));
    }
    if fields.size > OCTAL_12 {
        records.push(("size", fields.size.to_string().into_bytes()));
    }
    if fields.uid > OCTAL_8 {
        records.push(("uid", fields.uid.to_string().into_bytes()));
    }
    let mut out = Vec::with_capacity(if records.is_empty() { BLOCK } else { 4 * BLOCK });
    if !records.is_empty() {
        let mut body = Vec::new();
        for (key, value) in &records {
            put_pax_record(&mut body, key.as_bytes(), value);
        }
        let mut name = b"PaxHeaders.0/".to_vec();
        name.extend(
            fields
                .path
                .iter()
                .rev()
                .skip_while(|&&byte| byte == b'/')
                .take_while(|&&byte| byte != b'/'),
        );
        name[13..].reverse();
        put_block(
            &mut out,
            &Fields {
                path: &name,
                typeflag: b'x',
                size: body.len() as u64,
                ..blank()
            },
        );
        out.extend_from_slice(&body);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    put_block(&mut out, fields);
    out
}

fn blank<'a>() -> Fields<'a> {
    Fields {
        path: &[],
        link: &[],
        typeflag: b'0',
        mode: 0,
        uid: 0,
        gid: 0,
        size: 0,
        mtime_secs: 0,
        rdev: (0, 0),
        capability: None,
    }
}

fn needs_record(text: &[u8]) -> bool {
    text.len() > 100 || !text.is_ascii()
}

/// `"<length> <key>=<value>\n"`, where the length counts its own digits.
fn put_pax_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length += 1;
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn put_block(out: &mut Vec<u8>, fields: &Fields<'_>) {
    let mut block = [0_u8; BLOCK];
    put_text(&mut block[0..100], fields.path);
    put_octal(&mut block[100..108], fields.mode.into());
    put_octal(
        &mut block[108..116],
        if fields.uid > OCTAL_8 { 0 } else { fields.uid },
    );
    put_octal(
        &mut block[116..124],
        if fields.gid > OCTAL_8 { 0 } else { fields.gid },
    );
    put_octal(
        &mut block[124..136],
        if fields.size > OCTAL_12 { 0 } else { fields.size },
    );
    let secs = u64::try_from(fields.mtime_secs)
        .ok()
        .filter(|&secs| secs <= OCTAL_12)
        .unwrap_or(0);
    put_octal(&mut block[136..148], secs);
    block[156] = fields.typeflag;
    put_text(&mut block[157..257], fields.link);
    block[257..263].copy_from_slice(b"ustar\0");
    block[263..265].copy_from_slice(b"00");
    put_octal(&mut block[329..337], fields.rdev.0.into());
    put_octal(&mut block[337..345], fields.rdev.1.into());
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    put_octal(&mut block[148..155], sum.into());
    out.extend_from_slice(&block);
}

/// As much of `text` as fits, with non-ASCII bytes left out (the PAX record has the whole).
fn put_text(field: &mut [u8], text: &[u8]) {
    for (slot, byte) in field.iter_mut().zip(text.iter().filter(|byte| byte.is_ascii())) {
        *slot = *byte;
    }
}

/// Octal digits that fill the field but for a final NUL.
fn put_octal(field: &mut [u8], value: u64) {
    let (end, digits) = field.split_last_mut().expect("fields are longer than one byte");
    *end = 0;
    let mut rest = value;
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
}

/// Cuts a time to what a header keeps.
pub(super) fn truncate(time: Timestamp) -> Timestamp {
    Timestamp {
        secs: time.secs,
        nanos: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pax_record_counts_its_own_length() {
        for (value, length) in [
            ("x", 9),
            ("12345678901234567890", 29),
            (&"v".repeat(90), 99),
            (&"v".repeat(91), 101),
        ] {
            let mut out = Vec::new();
            put_pax_record(&mut out, b"path", value.as_bytes());
            assert_eq!(out.len(), length, "{value}");
            assert!(out.starts_with(format!("{length} path=").as_bytes()));
        }
    }

    #[test]
    fn deletions_carry_nothing() {
        let block = encode_whiteout(&RootPath::clean("q/r/a").expect("clean"));
        assert_eq!(block.len(), BLOCK);
        let header = tar::Header::from_byte_slice(&block);
        assert_eq!(&*header.path_bytes(), b"q/r/.wh.a");
        assert_eq!(
            (header.mode().ok(), header.mtime().ok(), header.size().ok()),
            (Some(0), Some(0), Some(0))
        );
    }
}
