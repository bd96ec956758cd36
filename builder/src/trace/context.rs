//! Which trace a build belongs to: the header `traceparent` (W3C Trace Context), else a new one.
use std::io::Read;
use tonic::metadata::MetadataMap;

/// A build's place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    /// The trace.
    pub(crate) trace: [u8; 16],
    /// The build's own span.
    pub(super) span: [u8; 8],
    /// The client's span it is part of.
    pub(super) parent: Option<[u8; 8]>,
    /// Whether it is to be sent anywhere.
    pub(crate) is_sampled: bool,
}

impl TraceContext {
    /// By the headers of a call.
    pub(crate) fn of(headers: &MetadataMap) -> TraceContext {
        TraceContext::of_parent(headers.get("traceparent").and_then(|value| value.to_str().ok()))
    }

    /// By the text of such a header; a new one without, or if it is none.
    pub(crate) fn of_parent(parent: Option<&str>) -> TraceContext {
        match parent.and_then(parse) {
            Some((trace, parent, is_sampled)) => TraceContext {
                trace,
                span: random(),
                parent: Some(parent),
                is_sampled,
            },
            None => TraceContext {
                trace: random(),
                span: random(),
                parent: None,
                is_sampled: true,
            },
        }
    }

    /// Whether a client has spans of the same trace.
    pub(crate) fn is_shared(&self) -> bool {
        self.parent.is_some()
    }
}

impl Default for TraceContext {
    fn default() -> TraceContext {
        TraceContext::of(&MetadataMap::new())
    }
}

/// `version-trace-parent-flags`; nothing for what is no such thing.
fn parse(text: &str) -> Option<([u8; 16], [u8; 8], bool)> {
    let mut parts = text.trim().split('-');
    let version: [u8; 1] = hex(parts.next()?)?;
    let trace: [u8; 16] = hex(parts.next()?)?;
    let parent: [u8; 8] = hex(parts.next()?)?;
    let flags: [u8; 1] = hex(parts.next()?)?;
    let is_known = version[0] != 0xff && (version[0] != 0 || parts.next().is_none());
    (is_known && trace != [0; 16] && parent != [0; 8]).then_some((trace, parent, flags[0] & 1 == 1))
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_plain = text.len() == 2 * N && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    let mut bytes = [0; N];
    for (place, byte) in bytes.iter_mut().enumerate().filter(|_| is_plain) {
        *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).ok()?;
    }
    is_plain.then_some(bytes)
}

/// Bytes nobody else has; ids of spans need no more.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if read.is_err() || bytes == [0; N] {
        // Zeros are no id. A trace with a poor one is better than no build.
        bytes[N - 1] = 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
        const SPAN: &str = "b7ad6b7169203331";
        for (text, expected) in [
            (format!("00-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            (format!("01-{TRACE}-{SPAN}-01-more"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-01-more"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            (format!("00-{TRACE}-{SPAN}"), None),
            ("é-é".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(
                parse(&text).map(|(_, _, is_sampled)| is_sampled),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn without_a_header_there_is_a_new_trace() {
        let (one, two) = (TraceContext::default(), TraceContext::default());
        assert!(one.trace != two.trace && !one.is_shared() && one.is_sampled);
    }
}
