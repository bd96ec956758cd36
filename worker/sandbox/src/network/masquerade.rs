//! The one rule of nf_tables: what steps send to the outside goes out under the host's address.
//!
//! ```text
//! table ip builder { chain postrouting { type nat hook postrouting priority 100;
//!     ip saddr <subnet> ip daddr != <subnet> masquerade } }
//! ```
//!
//! Written as one batch that replaces the table whole, so any number of builders may do it at any time.

use std::io;

use super::{
    address::Subnet,
    netlink::{ACK, CREATE, IS_ACK, Netlink, REQUEST, acknowledged, put, put_message, put_nested, put_text},
};

const TABLE: &str = "builder";
const CHAIN: &str = "postrouting";
const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = SUBSYSTEM;
const DELTABLE: u16 = SUBSYSTEM | 2;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const NEWRULE: u16 = SUBSYSTEM | 6;
const APPEND: u16 = 0x800;
const FAMILY_IPV4: u8 = 2;
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_SOURCE_NAT: u32 = 100;
const REGISTER: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const SOURCE_AT: u32 = 12;
const DESTINATION_AT: u32 = 16;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// Writes the rule for the steps of `subnet`.
pub(super) fn install(subnet: Subnet) -> io::Result<()> {
    let mut netlink = Netlink::netfilter()?;
    let mut batch = Vec::new();
    put_message(&mut batch, BATCH_BEGIN, REQUEST, 0, &[0, 0, 0, 10]);
    let table = header(|out| put_text(out, 1, TABLE));
    let messages = [
        (NEWTABLE, CREATE, table.clone()),
        (DELTABLE, 0, table.clone()),
        (NEWTABLE, CREATE, table),
        (NEWCHAIN, CREATE, chain()),
        (NEWRULE, CREATE | APPEND, rule(subnet)),
    ];
    let mut last = 0;
    for (kind, flags, body) in messages {
        last = netlink.next_sequence();
        put_message(&mut batch, kind, REQUEST | ACK | flags, last, &body);
    }
    put_message(&mut batch, BATCH_END, REQUEST, 0, &[0, 0, 0, 10]);
    netlink.send(&batch)?;
    loop {
        for (kind, sequence, body) in netlink.receive()? {
            if kind == IS_ACK {
                acknowledged(&body)?;
                if sequence == last {
                    return Ok(());
                }
            }
        }
    }
}

/// A body with the fixed part of messages to nf_tables.
fn header(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![FAMILY_IPV4, 0, 0, 0];
    fill(&mut out);
    out
}

fn chain() -> Vec<u8> {
    header(|out| {
        put_text(out, 1, TABLE);
        put_text(out, 3, CHAIN);
        put_nested(out, 4, |hook| {
            put(hook, 1, &HOOK_POSTROUTING.to_be_bytes());
            put(hook, 2, &PRIORITY_SOURCE_NAT.to_be_bytes());
        });
        put_text(out, 7, "nat");
    })
}

fn rule(subnet: Subnet) -> Vec<u8> {
    header(|out| {
        put_text(out, 1, TABLE);
        put_text(out, 2, CHAIN);
        put_nested(out, 4, |expressions| {
            half(expressions, SOURCE_AT, EQUAL, subnet);
            half(expressions, DESTINATION_AT, NOT_EQUAL, subnet);
            expression(expressions, "masq", |_| {});
        });
    })
}

/// Compares the half of an address that names the subnet.
fn half(out: &mut Vec<u8>, at: u32, comparison: u32, subnet: Subnet) {
    expression(out, "payload", |data| {
        for (kind, value) in [(1, REGISTER), (2, NETWORK_HEADER), (3, at), (4, 2)] {
            put(data, kind, &u32::to_be_bytes(value));
        }
    });
    expression(out, "cmp", |data| {
        put(data, 1, &REGISTER.to_be_bytes());
        put(data, 2, &comparison.to_be_bytes());
        put_nested(data, 3, |value| put(value, 1, &subnet.first_half()));
    });
}

fn expression(out: &mut Vec<u8>, name: &str, fill: impl FnOnce(&mut Vec<u8>)) {
    put_nested(out, 1, |element| {
        put_text(element, 1, name);
        put_nested(element, 2, fill);
    });
}
