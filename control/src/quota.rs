//! What one client may use up.

use rnic_config::PerClient;

use crate::{
    objects::Kind,
    refusal::{Refusal, Verb},
};

/// The quota of each client, from the configuration.
#[derive(Clone, Debug)]
pub struct Quota {
    /// The configuration.
    pub limits: PerClient,
}

/// What a client has in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    objects: [u32; Kind::COUNT],
    registered: u64,
}

impl Quota {
    /// Objects of one kind.
    pub fn of(&self, kind: Kind) -> u32 {
        let limits = &self.limits;
        match kind {
            Kind::Pd | Kind::Xrcd => limits.pds,
            Kind::Mr => limits.mrs,
            // A channel serves at least one CQ.
            Kind::Cq | Kind::Channel => limits.cqs,
            Kind::Qp | Kind::Target => limits.qps,
            Kind::Ah => limits.ahs,
            Kind::Srq => limits.srqs,
            Kind::Mw => limits.mws,
        }
    }

    /// Objects of all kinds together.
    pub fn objects(&self) -> u32 {
        Kind::ALL.iter().map(|kind| self.of(*kind)).sum()
    }

    /// Units of a work queue.
    pub fn wr_depth(&self) -> u32 {
        self.limits.wr_depth.next_power_of_two()
    }

    /// Entries of a completion queue.
    pub fn cq_depth(&self) -> u32 {
        self.limits.cq_depth.next_power_of_two()
    }

    /// Checks that one more object is allowed.
    pub fn check(&self, usage: &Usage, kind: Kind) -> Verb<()> {
        let (used, limit) = (usage.of(kind), self.of(kind));
        if used < limit {
            return Ok(());
        }
        let (plural, key) = (kind.plural(), kind.limit_key());
        Err(Refusal::exhausted(format!(
            "this client has {used} {plural}, as many as it may (limits.per_client.{key}); destroy some first"
        )))
    }

    /// Checks that not too much of what was destroyed still awaits grace: `own` bytes of this client and `total` of
    /// all, of which there may be `limit`; or `full` says that some could not be destroyed yet. `who` holds it up.
    pub fn check_grace(
        &self,
        own: u64,
        (total, full): (u64, bool),
        limit: u64,
        who: impl Fn() -> String,
    ) -> Verb<()> {
        let own_limit = self.limits.bytes_awaiting_grace.bytes();
        let (bytes, of, limit, key) = if own > own_limit {
            (
                own,
                "this client's ",
                own_limit,
                "limits.per_client.bytes_awaiting_grace",
            )
        } else if full || total > limit {
            (total, "", limit, "limits.bytes_awaiting_grace")
        } else {
            return Ok(());
        };
        Err(Refusal::again(format!(
            "{bytes} bytes of {of}destroyed objects, of at most {limit} ({key}), wait for {}; nothing is made until they \
             are freed: try again",
            who()
        )))
    }

    /// Checks that `length` more bytes may be registered.
    pub fn check_registered(&self, usage: &Usage, length: u64) -> Verb<()> {
        let limit = self.limits.registered_memory.bytes();
        match usage.registered.checked_add(length) {
            Some(total) if total <= limit => Ok(()),
            _ => Err(Refusal::exhausted(format!(
                "length is {length} and {} bytes are registered; this client may register {limit} \
                 (limits.per_client.registered_memory)",
                usage.registered
            ))),
        }
    }
}

impl Usage {
    /// Objects in use.
    pub fn of(&self, kind: Kind) -> u32 {
        self.objects[kind as usize]
    }

    /// One more.
    pub fn add(&mut self, kind: Kind) {
        self.objects[kind as usize] += 1;
    }

    /// One less.
    pub fn remove(&mut self, kind: Kind) {
        let count = &mut self.objects[kind as usize];
        *count = count.saturating_sub(1);
    }

    /// Bytes were registered.
    pub fn register(&mut self, bytes: u64) {
        self.registered = self.registered.saturating_add(bytes);
    }

    /// Bytes were deregistered.
    pub fn deregister(&mut self, bytes: u64) {
        self.registered = self.registered.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_refused_by_the_name_of_its_key() {
        let quota = Quota {
            limits: PerClient {
                pds: 2,
                ..PerClient::default()
            },
        };
        let mut usage = Usage::default();
        for _ in 0..2 {
            quota.check(&usage, Kind::Pd).unwrap();
            usage.add(Kind::Pd);
        }
        let refusal = quota.check(&usage, Kind::Pd).unwrap_err();
        assert!(refusal.text().contains("2 PDs") && refusal.text().contains("limits.per_client.pds"));
        usage.remove(Kind::Pd);
        quota.check(&usage, Kind::Pd).unwrap();
    }

    #[test]
    fn too_much_awaiting_grace_is_a_matter_of_trying_again() {
        let quota = Quota {
            limits: PerClient::default(),
        };
        let own_limit = quota.limits.bytes_awaiting_grace.bytes();
        let who = || "poll core 3".to_owned();
        assert!(
            quota
                .check_grace(own_limit, (own_limit, false), own_limit, who)
                .is_ok()
        );
        for (own, total, key) in [
            (0, (0, true), "(limits.bytes_awaiting_grace)"),
            (
                own_limit + 1,
                (own_limit + 1, false),
                "limits.per_client.bytes_awaiting_grace",
            ),
            (0, ((64 << 20) + 1, false), "(limits.bytes_awaiting_grace)"),
        ] {
            let refusal = quota.check_grace(own, total, 64 << 20, who).unwrap_err();
            assert_eq!(refusal.errno(), rustix::io::Errno::AGAIN);
            assert!(refusal.text().contains(key) && refusal.text().contains("poll core 3"));
        }
    }

    #[test]
    fn registered_bytes_cannot_overflow_their_quota() {
        let quota = Quota {
            limits: PerClient::default(),
        };
        let mut usage = Usage::default();
        usage.register(1);
        assert!(quota.check_registered(&usage, u64::MAX).is_err());
        assert!(quota.check_registered(&usage, 8 << 30).is_err());
        assert!(quota.check_registered(&usage, (8 << 30) - 1).is_ok());
    }
}
