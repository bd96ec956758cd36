//! What is said about vertices, and where they come from. No part of any digest, so unknown fields are
//! left alone; keys that are no digests are not.

use super::digest;
use crate::definition::{
    Definition, LinuxResources, Location, OpMetadata, Position, ProgressGroup, Range, SourceFile, SourceInfo,
};
use crate::error::Error;
use crate::generated as pb;

pub(super) fn metadata(wire: pb::OpMetadata) -> OpMetadata {
    OpMetadata {
        ignore_cache: wire.ignore_cache,
        description: wire.description,
        export_cache: wire.export_cache.map(|export| export.value),
        caps: wire.caps,
        progress_group: wire.progress_group.map(|g| ProgressGroup {
            id: g.id,
            name: g.name,
            weak: g.weak,
        }),
        linux_resources: wire.linux_resources.map(|r| LinuxResources {
            memory: r.memory,
            memory_swap: r.memory_swap,
            cpu_shares: r.cpu_shares,
            cpu_period: r.cpu_period,
            cpu_quota: r.cpu_quota,
            cpuset_cpus: r.cpuset_cpus,
            cpuset_mems: r.cpuset_mems,
        }),
    }
}

pub(super) fn source(
    wire: pb::Source,
    nested: impl Fn(pb::Definition) -> Result<Definition, Error>,
) -> Result<SourceInfo, Error> {
    let infos = wire
        .infos
        .into_iter()
        .map(|info| {
            Ok(SourceFile {
                filename: info.filename,
                data: info.data,
                language: info.language,
                definition: info
                    .definition
                    .map(|definition| nested(definition).map(Box::new))
                    .transpose()?,
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let locations = wire
        .locations
        .into_iter()
        .map(|(key, places)| {
            Ok((
                digest("a source location", &key)?,
                places.locations.into_iter().filter_map(location).collect(),
            ))
        })
        .collect::<Result<_, Error>>()?;
    Ok(SourceInfo { locations, infos })
}

fn location(wire: pb::Location) -> Option<Location> {
    let position = |p: Option<pb::Position>| {
        p.map_or(Position::default(), |p| Position {
            line: p.line,
            character: p.character,
        })
    };
    Some(Location {
        source_index: u32::try_from(wire.source_index).ok()?,
        ranges: wire
            .ranges
            .into_iter()
            .map(|r| Range {
                start: position(r.start),
                end: position(r.end),
            })
            .collect(),
    })
}
