//! From the configuration's congestion control to the transport's.

use rnic_config::{BitRate, Congestion, Dcqcn, TimeSpan};
use rnic_transport::{self as transport, DcqcnSettings};

/// Bytes a second of a link that does not tell its speed: 10 Gb/s.
const UNKNOWN: u64 = 1_250_000_000;

/// That of the QPs of a port over a link of `speed_mbps`.
pub fn control(config: &Congestion, speed_mbps: Option<u32>) -> transport::Congestion {
    match config {
        Congestion::Off => transport::Congestion::Off,
        Congestion::Fixed(rate) => transport::Congestion::FixedRate {
            rate: rate.bytes().max(1),
        },
        Congestion::Dcqcn(dcqcn) => transport::Congestion::Dcqcn(dcqcn_settings(dcqcn, speed_mbps)),
    }
}

/// A rate given beside no `line_rate` may be beyond the link's: it is brought to that.
fn dcqcn_settings(dcqcn: &Dcqcn, speed_mbps: Option<u32>) -> DcqcnSettings {
    let link = speed_mbps
        .filter(|mbps| *mbps > 0)
        .map_or(UNKNOWN, |mbps| u64::from(mbps) * 1_000_000 / 8);
    let line_rate = dcqcn.line_rate.map_or(link, BitRate::bytes);
    let default = DcqcnSettings::for_line_rate(line_rate);
    let rate =
        |given: Option<BitRate>, default| given.map_or(default, BitRate::bytes).clamp(1, line_rate.max(1));
    let nanos = |given: Option<TimeSpan>, default| {
        given.map_or(default, |time| {
            u32::try_from(time.duration().as_nanos()).unwrap_or(u32::MAX)
        })
    };
    DcqcnSettings {
        line_rate: default.line_rate,
        min_rate: rate(dcqcn.min_rate, default.min_rate),
        additive_increase: rate(dcqcn.additive_increase, default.additive_increase),
        hyper_increase: rate(dcqcn.hyper_increase, default.hyper_increase),
        byte_counter: dcqcn.byte_counter.map_or(default.byte_counter, |size| {
            u32::try_from(size.bytes()).unwrap_or(u32::MAX)
        }),
        increase_timer: nanos(dcqcn.increase_timer, default.increase_timer),
        alpha_timer: nanos(dcqcn.alpha_timer, default.alpha_timer),
        decrease_interval: nanos(dcqcn.decrease_interval, default.decrease_interval),
        cnp_interval: nanos(dcqcn.cnp_interval, default.cnp_interval),
        gain_log2: dcqcn.gain_log2.unwrap_or(default.gain_log2),
        fast_recoveries: dcqcn.fast_recoveries.unwrap_or(default.fast_recoveries),
    }
}

/// Its name, as in the configuration.
pub fn name(congestion: &transport::Congestion) -> &'static str {
    match congestion {
        transport::Congestion::Off => "off",
        transport::Congestion::FixedRate { .. } => "fixed",
        transport::Congestion::Dcqcn(_) => "dcqcn",
    }
}

#[cfg(test)]
mod tests {
    use rnic_config::Config;

    use super::*;

    fn of(congestion: &str, speed_mbps: Option<u32>) -> transport::Congestion {
        let text = format!(
            "version: 1\nports:\n  - name: rnic0\n    device: {{ vdev: net_null0 }}\n    {congestion}\n"
        );
        let config = Config::parse(&text, "test.yaml").unwrap_or_else(|error| panic!("{error}"));
        control(&config.ports[0].congestion(), speed_mbps)
    }

    fn settings(congestion: transport::Congestion) -> DcqcnSettings {
        match congestion {
            transport::Congestion::Dcqcn(settings) => settings,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn dcqcn_at_the_speed_of_the_link_is_the_default_on_a_wire() {
        let default = settings(of("mtu: 1500", Some(40_000)));
        assert_eq!(default, DcqcnSettings::for_line_rate(5_000_000_000));
        assert_eq!(settings(of("congestion: dcqcn", None)).line_rate, UNKNOWN);
    }

    #[test]
    fn every_setting_reaches_the_transport() {
        let text = "congestion: { dcqcn: { line_rate: 8Gbps, min_rate: 8Mbps, additive_increase: 16Mbps, hyper_increase: 80Mbps, \
                    byte_counter: 1MiB, increase_timer: 1ms, alpha_timer: 2us, decrease_interval: 3us, cnp_interval: 4us, \
                    gain_log2: 4, fast_recoveries: 3 } }";
        let wanted = DcqcnSettings {
            line_rate: 1_000_000_000,
            min_rate: 1_000_000,
            additive_increase: 2_000_000,
            hyper_increase: 10_000_000,
            byte_counter: 1 << 20,
            increase_timer: 1_000_000,
            alpha_timer: 2_000,
            decrease_interval: 3_000,
            cnp_interval: 4_000,
            gain_log2: 4,
            fast_recoveries: 3,
        };
        assert_eq!(settings(of(text, Some(1))), wanted);
        assert_eq!(wanted.check(), Ok(()));
        let slow = settings(of("congestion: { dcqcn: { min_rate: 1Gbps } }", Some(100)));
        assert_eq!((slow.min_rate, slow.line_rate), (12_500_000, 12_500_000));
    }

    #[test]
    fn off_and_a_fixed_rate_are_what_they_say() {
        assert_eq!(of("congestion: off", None), transport::Congestion::Off);
        let fixed = transport::Congestion::FixedRate { rate: 12_500_000 };
        assert_eq!(of("congestion: { fixed: 100Mbps }", None), fixed);
    }
}
