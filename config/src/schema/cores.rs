//! The `cores` section.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor, value::SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::value::TimeSpan;

/// The cores that poll, and what they do when there is nothing to do.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cores {
    /// CPUs that poll, one thread each: a list of CPU numbers, or `auto` to take the last `count` CPUs the
    /// daemon may run on. Default `auto`.
    pub poll: PollCores,
    /// How many cores poll when `poll` is `auto`. 1 to 128. Default 1.
    #[schemars(range(min = 1, max = 128))]
    pub count: Option<u16>,
    /// Whether each poll thread stays on its CPU. Default true.
    pub pin: bool,
    /// What a poll core does when it finds nothing to do.
    pub idle: Idle,
}

impl Default for Cores {
    fn default() -> Self {
        Self {
            poll: PollCores::Auto,
            count: None,
            pin: true,
            idle: Idle::default(),
        }
    }
}

/// Which CPUs poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollCores {
    /// The last CPUs the daemon may run on; see [`Machine::poll_cpus`](crate::Machine::poll_cpus).
    Auto,
    /// These CPUs.
    List(Vec<u16>),
}

/// What a poll core does when it finds nothing to do.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Idle {
    /// How far an idle core goes. Default `pause`.
    pub policy: IdlePolicy,
    /// How long a core keeps polling at full speed after its last work. 0 to 1s. Default 100us.
    pub spin_for: TimeSpan,
    /// Longest sleep of policy `sleep`; a doorbell ends it early, an arriving frame may have to wait for it.
    /// 1us to 100ms. Default 1ms.
    pub max_sleep: TimeSpan,
}

impl Default for Idle {
    fn default() -> Self {
        Self {
            policy: IdlePolicy::Pause,
            spin_for: TimeSpan::micros(100),
            max_sleep: TimeSpan::micros(1000),
        }
    }
}

/// How far an idle poll core goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdlePolicy {
    /// Polls without a break: lowest latency, a whole CPU.
    Spin,
    /// Polls with the CPU's pause instruction between: leaves more to a sibling hyperthread.
    #[default]
    Pause,
    /// Sleeps, first briefly, then up to `max_sleep`: for laptops and shared machines.
    Sleep,
}

impl Serialize for PollCores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::List(ids) => ids.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for PollCores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AutoOrList;
        impl<'de> Visitor<'de> for AutoOrList {
            type Value = PollCores;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`auto` or a list of CPU numbers")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<PollCores, E> {
                match text {
                    "auto" => Ok(PollCores::Auto),
                    _ => Err(E::unknown_variant(text, &["auto"])),
                }
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<PollCores, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(PollCores::List)
            }
        }
        deserializer.deserialize_any(AutoOrList)
    }
}

impl JsonSchema for PollCores {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "PollCores".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                { "type": "string", "const": "auto" },
                {
                    "type": "array",
                    "title": "a list of CPU numbers",
                    "items": { "type": "integer", "minimum": 0, "maximum": 4095 },
                    "minItems": 1,
                    "maxItems": 128,
                    "examples": [[2, 3]],
                },
            ]
        })
    }
}
