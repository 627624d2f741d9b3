//! Quantities with units: `2GiB`, `100us`, `5%`, and the octal mode of a socket.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{ValueError, bad, written_as_string};

/// A number of bytes: `4096`, `64KiB`, `2GiB`. Units are powers of 1024; a bare number is bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const BYTE_UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl ByteSize {
    /// `n` × 1024 bytes.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }
    /// `n` × 1024² bytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
    /// `n` × 1024³ bytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (number, unit) = split_unit(text)?;
        let scale = match BYTE_UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, scale)) => *scale,
            None if unit.is_empty() => 1,
            None => {
                let meant = BYTE_UNITS.iter().find(|(name, _)| {
                    let short = name.trim_end_matches("iB");
                    let unit = unit.to_ascii_uppercase();
                    unit == short || unit.trim_end_matches('B') == short || unit == name.to_ascii_uppercase()
                });
                return Err(match meant {
                    Some((name, _)) => bad!("`{unit}` is not a unit of size; did you mean `{number}{name}`?"),
                    None => bad!("`{unit}` is not a unit of size; units are B, KiB, MiB, GiB, TiB"),
                });
            }
        };
        number
            .checked_mul(scale)
            .map(Self)
            .ok_or_else(|| bad!("`{text}` is more than 64 bits can count"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = BYTE_UNITS
            .into_iter()
            .find(|(_, scale)| self.0 != 0 && self.0.is_multiple_of(*scale))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

/// Bits a second: `40Mbps`, `10Gbps`. Units are powers of 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BitRate(u64);

const RATE_UNITS: [(&str, u64); 4] = [
    ("Gbps", 1_000_000_000),
    ("Mbps", 1_000_000),
    ("Kbps", 1_000),
    ("bps", 1),
];

impl BitRate {
    /// `n` bits a second.
    pub const fn bps(n: u64) -> Self {
        Self(n)
    }
    /// `n` million bits a second.
    pub const fn mbps(n: u64) -> Self {
        Self(n * 1_000_000)
    }
    /// The number of bits a second.
    pub const fn bits(self) -> u64 {
        self.0
    }
    /// Whole bytes a second.
    pub const fn bytes(self) -> u64 {
        self.0 / 8
    }
}

impl FromStr for BitRate {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (number, unit) = split_unit(text)?;
        if unit.is_empty() {
            return Err(bad!(
                "`{text}` has no unit; units are bps, Kbps, Mbps, Gbps, for example `{number}Mbps`"
            ));
        }
        let known = |(name, _): &&(&str, u64)| name.eq_ignore_ascii_case(unit);
        let (_, scale) = RATE_UNITS.iter().find(known).ok_or_else(|| {
            bad!("`{unit}` is not a unit of rate; units are bps, Kbps, Mbps, Gbps (bits a second)")
        })?;
        number
            .checked_mul(*scale)
            .map(Self)
            .ok_or_else(|| bad!("`{text}` is more than 64 bits can count"))
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = RATE_UNITS
            .into_iter()
            .find(|(_, scale)| self.0 != 0 && self.0.is_multiple_of(*scale))
            .unwrap_or(("bps", 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

/// A length of time with a unit: `100us`, `1ms`, `2s`. Resolution is one nanosecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct TimeSpan(pub Duration);

const TIME_UNITS: [(&str, u64); 5] = [
    ("min", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

impl TimeSpan {
    /// `n` microseconds.
    pub const fn micros(n: u64) -> Self {
        Self(Duration::from_micros(n))
    }
    /// The same as a [`Duration`].
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for TimeSpan {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (number, unit) = split_unit(text)?;
        if unit.is_empty() && number == 0 {
            return Ok(Self(Duration::ZERO));
        }
        if unit.is_empty() {
            return Err(bad!(
                "`{text}` has no unit; units are ns, us, ms, s, min, for example `{number}us`"
            ));
        }
        let (_, scale) = TIME_UNITS
            .iter()
            .find(|(name, _)| *name == unit || (*name == "us" && unit == "µs"))
            .ok_or_else(|| bad!("`{unit}` is not a unit of time; units are ns, us, ms, s, min"))?;
        let nanos = number
            .checked_mul(*scale)
            .ok_or_else(|| bad!("`{text}` is more than 584 years"))?;
        Ok(Self(Duration::from_nanos(nanos)))
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let (unit, scale) = TIME_UNITS
            .into_iter()
            .find(|(_, scale)| nanos != 0 && nanos.is_multiple_of(u128::from(*scale)))
            .unwrap_or(("s", 1));
        write!(f, "{}{unit}", nanos / u128::from(scale))
    }
}

/// How often something happens: `5%`, `0.1%`, or a fraction from 0 to 1 such as `0.05`. Resolution is
/// one in a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Chance {
    ppm: u32,
}

impl Chance {
    /// Happens never.
    pub const NEVER: Self = Self { ppm: 0 };

    /// Times in a million, 0 to 1,000,000.
    pub const fn parts_per_million(self) -> u32 {
        self.ppm
    }
    /// The fraction, 0.0 to 1.0.
    pub fn fraction(self) -> f64 {
        f64::from(self.ppm) / 1e6
    }
    fn from_fraction(fraction: f64, written: &dyn fmt::Display) -> Result<Self, ValueError> {
        if !(0.0..=1.0).contains(&fraction) {
            return Err(bad!("`{written}` is not between 0% and 100%"));
        }
        Ok(Self {
            ppm: (fraction * 1e6).round() as u32,
        })
    }
}

impl FromStr for Chance {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (number, scale) = match text.strip_suffix('%') {
            Some(number) => (number.trim_end(), 100.0),
            None => (text, 1.0),
        };
        // `f64` also reads `inf`, `nan` and `1e3`; a chance is plain decimal.
        let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        match number.parse::<f64>() {
            Ok(value) if plain => Self::from_fraction(value / scale, &text),
            _ => Err(bad!("`{text}` is not a chance")),
        }
    }
}

impl fmt::Display for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.ppm) / 1e4)
    }
}

/// Permission bits of a socket, written as a quoted octal string: `"0660"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SocketMode(u32);

impl SocketMode {
    /// `rw-rw----`: the user and group of the socket.
    pub const USER_AND_GROUP: Self = Self(0o660);

    /// The bits, as `chmod(2)` takes them; at most `0o777`.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for SocketMode {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        match u32::from_str_radix(text, 8) {
            Ok(mode) if octal && mode <= 0o777 => Ok(Self(mode)),
            _ => Err(bad!("`{text}` is not an octal mode from 0000 to 0777")),
        }
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

written_as_string!(SocketMode, "an octal mode in quotes", example: "0660");

/// Splits `64KiB` into 64 and `KiB`.
fn split_unit(text: &str) -> Result<(u64, &str), ValueError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(bad!("`{text}` does not begin with a whole number"));
    }
    if unit.starts_with('.') {
        return Err(bad!(
            "`{text}` has a fraction; write a whole number of a smaller unit"
        ));
    }
    let number = number
        .parse()
        .map_err(|_| bad!("`{text}` is more than 64 bits can count"))?;
    Ok((number, unit.trim_start()))
}

/// Serde and JSON schema for a quantity: a string with a unit, or where that is unambiguous a bare number.
macro_rules! quantity {
    ($type:ident, $title:literal, example: $example:literal, json: [$($json:literal),+], $($from_number:item)*) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Quantity;
                impl Visitor<'_> for Quantity {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!($title, " such as `", $example, "`"))
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    $($from_number)*
                }
                deserializer.deserialize_any(Quantity)
            }
        }
        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": [$($json),+], "title": $title, "examples": [$example] })
            }
        }
    };
}

quantity!(ByteSize, "a size in bytes, KiB, MiB, GiB or TiB", example: "64KiB", json: ["string", "integer"],
    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
        Ok(ByteSize(bytes))
    }
);
quantity!(TimeSpan, "a time in ns, us, ms, s or min", example: "100us", json: ["string", "integer"],
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<TimeSpan, E> {
        number.to_string().parse().map_err(E::custom)
    }
);
quantity!(BitRate, "a rate in bps, Kbps, Mbps or Gbps", example: "10Gbps", json: ["string"],);
quantity!(Chance, "a chance from 0% to 100%", example: "5%", json: ["string", "number"],
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Chance, E> {
        Chance::from_fraction(number as f64, &number).map_err(E::custom)
    }
    fn visit_f64<E: de::Error>(self, fraction: f64) -> Result<Chance, E> {
        Chance::from_fraction(fraction, &fraction).map_err(E::custom)
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_in_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("7B", 7),
            ("64KiB", 65536),
            ("2 GiB", 2 << 30),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        assert_eq!(ByteSize(3 << 20).to_string(), "3MiB");
        assert_eq!(ByteSize(1025).to_string(), "1025B");
    }

    #[test]
    fn a_wrong_unit_of_size_names_the_right_one() {
        let message = |text: &str| text.parse::<ByteSize>().unwrap_err().to_string();
        assert!(message("2GB").contains("did you mean `2GiB`?"));
        assert!(message("64k").contains("did you mean `64KiB`?"));
        assert!(message("5 parsecs").contains("units are B, KiB"));
        assert!(message("1.5GiB").contains("fraction"));
        assert!(message("-1").contains("whole number"));
        assert!(message("99999999999TiB").contains("64 bits"));
    }

    #[test]
    fn rates_count_bits_in_powers_of_1000() {
        for (text, bits) in [
            ("40Mbps", 40_000_000),
            ("10Gbps", 10_000_000_000),
            ("8 bps", 8),
            ("1kbps", 1_000),
        ] {
            assert_eq!(text.parse().map(BitRate::bits), Ok(bits), "{text}");
        }
        assert_eq!(BitRate::mbps(2_000).to_string(), "2Gbps");
        assert_eq!(BitRate::mbps(8).bytes(), 1_000_000);
        let message = |text: &str| text.parse::<BitRate>().unwrap_err().to_string();
        assert!(message("10").contains("no unit"));
        assert!(message("10GBps ").contains("not a unit") || message("10GB").contains("not a unit"));
        assert!(message("1.5Gbps").contains("fraction"));
    }

    #[test]
    fn times_need_a_unit_unless_zero() {
        assert_eq!("100us".parse(), Ok(TimeSpan::micros(100)));
        assert_eq!("1min".parse(), Ok(TimeSpan(Duration::from_secs(60))));
        assert_eq!("0".parse(), Ok(TimeSpan(Duration::ZERO)));
        assert!(
            "100"
                .parse::<TimeSpan>()
                .unwrap_err()
                .to_string()
                .contains("no unit")
        );
        assert!(
            "1h".parse::<TimeSpan>()
                .unwrap_err()
                .to_string()
                .contains("units are ns")
        );
        assert_eq!(TimeSpan::micros(2_000_000).to_string(), "2s");
    }

    #[test]
    fn chances_are_percentages_or_fractions() {
        for (text, ppm) in [
            ("5%", 50_000),
            ("0.1%", 1_000),
            ("100%", 1_000_000),
            ("0.05", 50_000),
            ("0", 0),
        ] {
            assert_eq!(text.parse().map(Chance::parts_per_million), Ok(ppm), "{text}");
        }
        for text in ["101%", "-1%", "nan", "inf%", "1e-3", "5", "%", ""] {
            assert!(text.parse::<Chance>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_socket_mode_is_octal() {
        assert_eq!("0660".parse().map(SocketMode::bits), Ok(0o660));
        for text in ["660 ", "0888", "1777", "66", "+660", ""] {
            assert!(text.parse::<SocketMode>().is_err(), "{text}");
        }
    }
}
