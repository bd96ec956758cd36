//! Finds fields in an encoded op that this builder does not know.
//!
//! The decoder skips them, as protobuf wants it. For an op that would be wrong: a field left out is an
//! instruction left out. So the bytes are walked once more against the table of known fields, and the
//! first unknown one is named. Metadata is not walked: an unknown field there is only a hint not taken.

/// A wire message: its name and its known fields; a field that is itself a message names that.
struct Message {
    name: &'static str,
    fields: &'static [(u32, Option<&'static Message>)],
}

/// Bytes that are not well formed are none of our business here; the decoder has complained already.
const MAX_DEPTH: usize = 16;

/// The first unknown field of an encoded op: name of its message and its number.
pub(crate) fn unknown_field(op: &[u8]) -> Option<(&'static str, u32)> {
    walk(op, &OP, 0)
}

fn walk(mut bytes: &[u8], message: &'static Message, depth: usize) -> Option<(&'static str, u32)> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let number = u32::try_from(key >> 3).unwrap_or(u32::MAX);
        let Some((_, nested)) = message.fields.iter().find(|(known, _)| *known == number) else {
            return Some((message.name, number));
        };
        match key & 7 {
            0 => {
                varint(&mut bytes)?;
            }
            1 => bytes = bytes.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let content = bytes.get(..length)?;
                bytes = &bytes[length..];
                if let Some(nested) = nested
                    && depth < MAX_DEPTH
                    && let Some(found) = walk(content, nested, depth + 1)
                {
                    return Some(found);
                }
            }
            5 => bytes = bytes.get(4..)?,
            _ => return None,
        }
    }
    None
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

macro_rules! message {
    ($ident:ident $name:literal { $($plain:literal),* $(; $($number:literal : $nested:ident),*)? }) => {
        static $ident: Message = Message {
            name: $name,
            fields: &[$(($plain, None),)* $($(($number, Some(&$nested)),)*)?],
        };
    };
}

message!(INPUT "Input" { 1, 2 });
message!(PLATFORM "Platform" { 1, 2, 3, 4, 5 });
message!(CONSTRAINTS "WorkerConstraints" { 1 });
message!(PAIR "map entry" { 1, 2 });
message!(SOURCE "SourceOp" { 1; 2: PAIR });
message!(PROXY "ProxyEnv" { 1, 2, 3, 4, 5 });
message!(HOST "HostIP" { 1, 2 });
message!(ULIMIT "Ulimit" { 1, 2, 3 });
message!(META "Meta" { 1, 2, 3, 4, 7, 10, 11, 12; 5: PROXY, 6: HOST, 9: ULIMIT });
message!(TMPFS "TmpfsOpt" { 1 });
message!(CACHE "CacheOpt" { 1, 2 });
message!(SECRET "SecretOpt" { 1, 2, 3, 4, 5 });
message!(SSH "SSHOpt" { 1, 2, 3, 4, 5 });
message!(MOUNT "Mount" { 1, 2, 3, 4, 5, 6, 23, 24; 19: TMPFS, 20: CACHE, 21: SECRET, 22: SSH });
message!(SECRET_ENV "SecretEnv" { 1, 2, 3 });
message!(DEVICE "CDIDevice" { 1, 2 });
message!(EXEC "ExecOp" { 3, 4; 1: META, 2: MOUNT, 5: SECRET_ENV, 6: DEVICE });
message!(NAMED "NamedUserOpt" { 1, 2 });
message!(USER "UserOpt" { 2; 1: NAMED });
message!(CHOWN "ChownOpt" {; 1: USER, 2: USER });
message!(COPY "FileActionCopy" { 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16; 3: CHOWN });
message!(MKFILE "FileActionMkFile" { 1, 2, 3, 5; 4: CHOWN });
message!(MKDIR "FileActionMkDir" { 1, 2, 3, 5; 4: CHOWN });
message!(RM "FileActionRm" { 1, 2, 3 });
message!(SYMLINK "FileActionSymlink" { 1, 2, 4; 3: CHOWN });
message!(ACTION "FileAction" { 1, 2, 3; 4: COPY, 5: MKFILE, 6: MKDIR, 7: RM, 8: SYMLINK });
message!(FILE "FileOp" {; 2: ACTION });
message!(ONE "input" { 1 });
message!(MERGE "MergeOp" {; 1: ONE });
message!(DIFF "DiffOp" {; 1: ONE, 2: ONE });
message!(PASSTHROUGH "PassthroughOp" { 1, 2 });
message!(BUILD_INPUT "map entry" { 1; 2: ONE });
message!(BUILD "BuildOp" { 1, 3; 2: BUILD_INPUT, 4: PAIR });
message!(OP "Op" {; 1: INPUT, 2: EXEC, 3: SOURCE, 4: FILE, 5: BUILD, 6: MERGE, 7: DIFF, 8: PASSTHROUGH, 10: PLATFORM, 11: CONSTRAINTS });

#[cfg(test)]
mod tests {
    use super::unknown_field;

    #[test]
    fn unknown_fields_are_found_at_any_depth() {
        type Found = Option<(&'static str, u32)>;
        let cases: &[(&[u8], Found)] = &[
            (&[], None),
            (&[0x5a, 0x00], None),
            (&[0x78, 0x01], Some(("Op", 15))),
            // exec { meta { field 8: varint } }
            (&[0x12, 0x04, 0x0a, 0x02, 0x40, 0x01], Some(("Meta", 8))),
            // a length that runs past the end is left to the decoder
            (&[0x12, 0x7f, 0x0a], None),
            // attrs entry with a third field
            (&[0x1a, 0x04, 0x12, 0x02, 0x18, 0x01], Some(("map entry", 3))),
        ];
        for (bytes, expected) in cases {
            assert_eq!(unknown_field(bytes), *expected, "{bytes:02x?}");
        }
    }
}
