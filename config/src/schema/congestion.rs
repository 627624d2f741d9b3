//! Key `congestion` of a port.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::value::{BitRate, ByteSize, TimeSpan};

/// How the queue pairs of a port deal with congestion: `off`, `dcqcn`, `{ dcqcn: { … } }` or `{ fixed: 1Gbps }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Congestion {
    /// Send as fast as the windows allow.
    Off,
    /// No queue pair ever sends faster.
    Fixed(BitRate),
    /// DCQCN: rates follow what marked and lost packets say.
    Dcqcn(Dcqcn),
}

/// Settings of DCQCN. Defaults are those of its paper (SIGCOMM 2015), with rates in proportion to the link's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dcqcn {
    /// Rate of a queue pair that has not heard of congestion lately. 1Mbps to 8000Gbps. Default: the speed of the link;
    /// 10Gbps where the device does not tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line_rate: Option<BitRate>,
    /// Rate that every queue pair is left with. 8bps to `line_rate`. Default: a thousandth of `line_rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_rate: Option<BitRate>,
    /// Step of additive increase. 8bps to `line_rate`. Default: a thousandth of `line_rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub additive_increase: Option<BitRate>,
    /// Step of hyper increase. 8bps to `line_rate`. Default: a hundredth of `line_rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hyper_increase: Option<BitRate>,
    /// The rate goes up when so many bytes were sent. 1KiB to 4095MiB. Default 10000000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub byte_counter: Option<ByteSize>,
    /// The rate goes up when so much time has passed. 1us to 4s. Default 55us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub increase_timer: Option<TimeSpan>,
    /// What a notification costs becomes less when so much time has passed without one. 1us to 4s. Default 55us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha_timer: Option<TimeSpan>,
    /// The rate goes down at most once in this time. 1us to 4s. Default 50us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decrease_interval: Option<TimeSpan>,
    /// Notifications (CNPs) about one queue pair are at least so far apart. 1us to 4s. Default 50us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cnp_interval: Option<TimeSpan>,
    /// Weight of the last notification in what one costs, as the power of two that it is one part of: 8 is 1/256. 1 to
    /// 16. Default 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub gain_log2: Option<u32>,
    /// Turns of timer or byte counter before the rate goes beyond what it was. 1 to 1000. Default 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub fast_recoveries: Option<u32>,
}

/// [`Congestion`] as a map, before "exactly one" is checked.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
struct Keys {
    /// The rate that no queue pair exceeds, as Ethernet frames with FCS. 8bps to 8000Gbps. Frames do not ask for marks, and
    /// marks are not answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    fixed: Option<BitRate>,
    /// DCQCN with these settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    dcqcn: Option<Dcqcn>,
}

const WORDS: [&str; 2] = ["off", "dcqcn"];

impl<'de> Deserialize<'de> for Congestion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrMap;
        impl<'de> Visitor<'de> for WordOrMap {
            type Value = Congestion;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`off`, `dcqcn`, or a map with `fixed` or `dcqcn`")
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Congestion, E> {
                match word {
                    "off" => Ok(Congestion::Off),
                    "dcqcn" => Ok(Congestion::Dcqcn(Dcqcn::default())),
                    _ => Err(E::unknown_variant(word, &WORDS)),
                }
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Congestion, A::Error> {
                match Keys::deserialize(MapAccessDeserializer::new(map))? {
                    Keys {
                        fixed: Some(rate),
                        dcqcn: None,
                    } => Ok(Congestion::Fixed(rate)),
                    Keys {
                        fixed: None,
                        dcqcn: Some(dcqcn),
                    } => Ok(Congestion::Dcqcn(dcqcn)),
                    _ => Err(de::Error::custom(
                        "exactly one of `fixed` and `dcqcn` has to be given",
                    )),
                }
            }
        }
        deserializer.deserialize_any(WordOrMap)
    }
}

impl Serialize for Congestion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let keys = match self {
            Congestion::Off => return serializer.serialize_str("off"),
            Congestion::Fixed(rate) => Keys {
                fixed: Some(*rate),
                dcqcn: None,
            },
            Congestion::Dcqcn(dcqcn) => Keys {
                fixed: None,
                dcqcn: Some(dcqcn.clone()),
            },
        };
        keys.serialize(serializer)
    }
}

impl JsonSchema for Congestion {
    fn schema_name() -> Cow<'static, str> {
        "Congestion".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [{ "type": "string", "enum": WORDS }, generator.subschema_for::<Keys>()]
        })
    }
}
