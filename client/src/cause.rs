//! Why an operation or an object failed, in words.
use std::fmt;

/// Why the daemon failed an operation or an object: the check that failed and the packet it failed on.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// Number of the check in the daemon; 0 when no check failed.
    pub check: u8,
    /// Opcode of the packet (IBTA table 35).
    pub opcode: u8,
    /// AETH syndrome received or sent, 0 when there was none (IBTA table 44).
    pub syndrome: u8,
    /// PSN of the packet, 24 bits.
    pub psn: u32,
}

impl Cause {
    /// `None` when the daemon gave no cause.
    pub(crate) fn from_abi(cause: rnic_abi::Cause) -> Option<Cause> {
        (cause != rnic_abi::Cause::default()).then_some(Cause {
            check: cause.check,
            opcode: cause.opcode,
            syndrome: cause.syndrome,
            psn: cause.psn,
        })
    }

    /// What the check looked at, in words.
    pub fn check_name(&self) -> &'static str {
        rnic_abi::CHECK_NAMES
            .get(usize::from(self.check))
            .copied()
            .unwrap_or("unknown check")
    }

    /// Name of the packet's opcode, if it is one of the reliable connection service.
    pub fn opcode_name(&self) -> Option<&'static str> {
        const RC: [&str; 24] = [
            "SEND first",
            "SEND middle",
            "SEND last",
            "SEND last with immediate",
            "SEND only",
            "SEND only with immediate",
            "RDMA WRITE first",
            "RDMA WRITE middle",
            "RDMA WRITE last",
            "RDMA WRITE last with immediate",
            "RDMA WRITE only",
            "RDMA WRITE only with immediate",
            "RDMA READ request",
            "RDMA READ response first",
            "RDMA READ response middle",
            "RDMA READ response last",
            "RDMA READ response only",
            "ACKNOWLEDGE",
            "ATOMIC ACKNOWLEDGE",
            "COMPARE & SWAP",
            "FETCH & ADD",
            "reserved",
            "SEND last with invalidate",
            "SEND only with invalidate",
        ];
        RC.get(usize::from(self.opcode)).copied()
    }

    /// Meaning of the syndrome, if there is one that says "no".
    pub fn syndrome_name(&self) -> Option<&'static str> {
        match (self.syndrome >> 5, self.syndrome & 0x1f) {
            (1, _) => Some("RNR NAK"),
            (3, 0) => Some("NAK: PSN sequence error"),
            (3, 1) => Some("NAK: invalid request"),
            (3, 2) => Some("NAK: remote access error"),
            (3, 3) => Some("NAK: remote operational error"),
            (3, 4) => Some("NAK: invalid RD request"),
            (3, _) => Some("NAK: reserved code"),
            _ => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.check_name())?;
        match self.opcode_name() {
            Some(name) => write!(f, " on {name}")?,
            None => write!(f, " on opcode {:#04x}", self.opcode)?,
        }
        write!(f, ", PSN {}", self.psn)?;
        match self.syndrome_name() {
            Some(name) => write!(f, ", {name} (syndrome {:#04x})", self.syndrome),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_happened() {
        let cause = Cause {
            check: 3,
            opcode: 0x0c,
            syndrome: 0x62,
            psn: 17,
        };
        assert_eq!(
            cause.to_string(),
            "address and length leave the region on RDMA READ request, PSN 17, NAK: remote access error (syndrome 0x62)"
        );
        assert_eq!(Cause::from_abi(rnic_abi::Cause::default()), None);
    }
}
