//! UD: each QP by its sender.

use crate::checker::Seen;
use crate::report::Report;
use crate::rule::Rule;
use rnic_wire::Psn;
use std::collections::HashMap;
use std::net::IpAddr;

/// The last PSN of each UD QP, by address and number.
#[derive(Default)]
pub(crate) struct Datagrams {
    last: HashMap<(IpAddr, u32), Psn>,
}

impl Datagrams {
    pub fn take(&mut self, seen: &Seen<'_>, report: &mut Report) {
        let Some(deth) = seen.frame.headers().deth.filter(|_| seen.near) else {
            return;
        };
        let psn = seen.frame.bth().psn;
        let sender = (seen.frame.net().src(), deth.src_qpn);
        if let Some(last) = self.last.insert(sender, psn) {
            report.check(Rule::UdPsn, psn.is_after(last), &seen.at, || {
                format!("QP {:#08x} sent PSN {last} before", deth.src_qpn)
            });
        }
    }
}
