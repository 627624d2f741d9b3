//! Command lines of the tools that are used in both places, and the figures in what all tools print.
use crate::peers::Metric;

/// How long rnic-perf measures.
#[derive(Copy, Clone)]
pub enum Extent {
    Seconds(u64),
    Messages(u64),
}

/// SENDs to and fro, or WRITEs: a side of rnic-perf.
pub fn rnic_perf(metric: Metric, device: &str, port: u16, size: u64, extent: Extent) -> Vec<String> {
    let what = match metric {
        Metric::Latency => "send lat",
        Metric::Bandwidth => "write bw",
    };
    let extent = match extent {
        Extent::Seconds(seconds) => format!("-D {seconds}"),
        Extent::Messages(messages) => format!("-n {messages}"),
    };
    words(&format!("{what} -d {device} -p {port} -s {size} {extent} --json"))
}

/// The same by the tools of perftest, of which this is the name and the arguments.
pub fn perftest(
    metric: Metric,
    device: &str,
    gid: u8,
    port: u16,
    size: u64,
    messages: u64,
) -> (&'static str, Vec<String>) {
    let tool = match metric {
        Metric::Latency => "ib_send_lat",
        Metric::Bandwidth => "ib_write_bw",
    };
    // -F: a clock whose rate is not the one in /proc/cpuinfo is none of their business.
    let args = format!("-d {device} -x {gid} -p {port} -s {size} -n {messages} -m 4096 -F");
    (tool, words(&args))
}

/// Arguments of a client of qperf.
pub fn qperf(metric: Metric, port: u16, size: u64, seconds: u64) -> Vec<String> {
    let test = match metric {
        Metric::Latency => "tcp_lat",
        Metric::Bandwidth => "tcp_bw",
    };
    // -uu: times in nanoseconds, bandwidth in bytes a second.
    words(&format!("127.0.0.1 -lp {port} -uu -t {seconds} -m {size} {test}"))
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// What `rnic-perf --json` found.
pub fn rnic_perf_value(text: &str, metric: Metric) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with('{'))?;
    let json: serde_json::Value = serde_json::from_str(line).ok()?;
    match metric {
        Metric::Latency => Some(json["p50_ns"].as_f64()? / 1000.0),
        Metric::Bandwidth => json["gbit_per_s"].as_f64(),
    }
}

/// What a tool of perftest found. Its columns are bytes, iterations, and least, most, typical (the median) and mean
/// microseconds; or bytes, iterations, peak and mean MB/s, and the mean of millions of messages a second. MB/s have two
/// decimals, too few for small messages.
pub fn perftest_value(text: &str, metric: Metric, size: u64) -> Option<f64> {
    let of_size = |line: &&str| line.split_whitespace().next() == Some(&size.to_string());
    let line = text.lines().rev().find(of_size)?;
    let column: f64 = line.split_whitespace().nth(4)?.parse().ok()?;
    let value = match metric {
        Metric::Latency => column,
        Metric::Bandwidth => column * size as f64 * 8.0 / 1e3,
    };
    // They print `inf` when they have not understood the clock.
    (value.is_finite() && value > 0.0).then_some(value)
}

/// What a pingpong of rdma-core, or ours of that name, found: microseconds of half a round trip.
pub fn pingpong_value(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.ends_with(" usec/iter"))?;
    let value = line.split_whitespace().rev().nth(1)?;
    value.parse::<f64>().ok().map(|round| round / 2.0)
}

/// What qperf found.
pub fn qperf_value(text: &str, metric: Metric) -> Option<f64> {
    match metric {
        Metric::Latency => Some(qperf_figure(text, "latency")? / 1e3),
        Metric::Bandwidth => Some(qperf_figure(text, "bw")? * 8.0 / 1e9),
    }
}

/// The number behind `key  =`, in nanoseconds or bytes a second.
fn qperf_figure(text: &str, key: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.trim_start().starts_with(key))?;
    let (_, value) = line.split_once('=')?;
    let mut words = value.split_whitespace();
    let number: f64 = words.next()?.replace(',', "").parse().ok()?;
    let scale = match words.next()? {
        "ns" | "bytes/sec" => 1.0,
        "us" | "KB/sec" => 1e3,
        "ms" | "MB/sec" => 1e6,
        "sec" | "GB/sec" => 1e9,
        _ => return None,
    };
    Some(number * scale)
}

/// What ucx_perftest found. Its columns are iterations, median, mean and overall latency in microseconds, mean and overall
/// bandwidth in MB/s of 2^20 bytes, and so on.
pub fn ucx_value(text: &str, metric: Metric) -> Option<f64> {
    let numbers: Vec<f64> = last_figures(text)?
        .split(',')
        .map_while(|word| word.trim().parse().ok())
        .collect();
    match metric {
        Metric::Latency => numbers.get(1).copied(),
        Metric::Bandwidth => numbers.get(5).map(|mb| mb * 8.0 * 1.048_576 / 1e3),
    }
}

/// What fi_pingpong found: microseconds a transfer, the last column but one.
pub fn fabric_value(text: &str) -> Option<f64> {
    last_figures(text)?.split_whitespace().rev().nth(1)?.parse().ok()
}

fn last_figures(text: &str) -> Option<&str> {
    // Small numbers are padded on the left.
    text.lines()
        .rev()
        .map(str::trim_start)
        .find(|line| line.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_qperf_ucx_and_libfabric_are_found() {
        let qperf = "tcp_lat:\n    latency  =  9,637 ns\n";
        assert_eq!(qperf_value(qperf, Metric::Latency), Some(9.637));
        let qperf = "tcp_bw:\n    bw  =  2.5 GB/sec\n";
        assert_eq!(qperf_value(qperf, Metric::Bandwidth), Some(20.0));
        assert_eq!(qperf_value("failed", Metric::Bandwidth), None);
        let ucx = "iterations,50.0_percentile_lat\n20000,0.185,2.883,2.9,21.17,1000.0,346883,346880\n";
        assert_eq!(ucx_value(ucx, Metric::Latency), Some(0.185));
        assert_eq!(ucx_value(ucx, Metric::Bandwidth), Some(8.388_608));
        let few = "iterations,50.0_percentile_lat\n 512,187.987,1587.601,2799.626,629.88,357.19,630,357\n\n";
        assert_eq!(ucx_value(few, Metric::Latency), Some(187.987));
        assert_eq!(ucx_value("refused", Metric::Latency), None);
        let fabric = "bytes #sent #ack total time MB/sec usec/xfer Mxfers/sec\n\
                      64      2k      =2k      250k        0.43s      0.60     107.35       0.01\n";
        assert_eq!(fabric_value(fabric), Some(107.35));
        assert_eq!(fabric_value("bytes"), None);
    }

    #[test]
    fn figures_of_perftest_are_the_median_and_what_the_mean_rate_of_messages_makes() {
        let latency = " local address: LID 0000 QPN 0x0015 PSN 0x2edac\n\
            #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]\n\
            \x208       500          17.75          416.92       20.55    \t       25.55       \t35.83\n-----\n";
        assert_eq!(perftest_value(latency, Metric::Latency, 8), Some(20.55));
        assert_eq!(perftest_value(latency, Metric::Latency, 64), None);
        let bandwidth = " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n \
                         65536      200              48.30              40.92  \t\t   0.000500\n";
        assert_eq!(
            perftest_value(bandwidth, Metric::Bandwidth, 65_536),
            Some(0.262_144)
        );
        let unclear = " 8  500  inf  inf  inf  inf  inf  inf inf\n";
        assert_eq!(perftest_value(unclear, Metric::Latency, 8), None);
    }

    #[test]
    fn figures_of_pingpongs_and_rnic_perf_are_found() {
        let pingpong =
            "16000 bytes in 0.38 seconds = 0.34 Mbit/sec\n1000 iters in 0.38 seconds = 379.48 usec/iter\n";
        assert_eq!(pingpong_value(pingpong), Some(189.74));
        assert_eq!(pingpong_value("Failed to connect"), None);
        let perf = "waiting\n{\"p50_ns\":1500,\"gbit_per_s\":2.5}\n";
        assert_eq!(rnic_perf_value(perf, Metric::Latency), Some(1.5));
        assert_eq!(rnic_perf_value(perf, Metric::Bandwidth), Some(2.5));
        assert_eq!(rnic_perf_value("no such device", Metric::Latency), None);
    }
}
