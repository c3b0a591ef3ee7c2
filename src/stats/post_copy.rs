//! What happened after the guest was moved before its memory.
//!
//! The source knows how pages went, the destination how long the guest waited for them; each leaves out what it cannot
//! know. A fault is a page that the guest, or its VMM, touched before it was there; a request is a page that the source
//! was asked for because of one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::millis;
use crate::units::PageCount;

/// Post-copy, as one end saw it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PostCopyReport {
    /// Pages that were missing when the guest moved; each crosses once.
    pub pages: PageCount,
    /// Receiver: faults on missing pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faults: Option<u64>,
    /// Receiver: how long they took, from the moment the fault was heard of until its page was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault_us: Option<FaultTimes>,
    /// Pages that went on the urgent lane.
    pub urgent_pages: PageCount,
    /// Pages that were pushed.
    pub bulk_pages: PageCount,
    /// Sender: pages that it was asked for, those included that were on their way already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Receiver: how long the guest's threads waited for pages, all together.
    #[serde(rename = "lost_ms", with = "millis::optional", skip_serializing_if = "Option::is_none")]
    pub lost: Option<Duration>,
    /// Receiver: thread by thread, those that waited.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub threads: Vec<ThreadLoss>,
    /// Receiver: the longest that the source was there and brought nothing, if that was too long.
    #[serde(rename = "starved_ms", with = "millis::optional", skip_serializing_if = "Option::is_none")]
    pub starved: Option<Duration>,
    /// How often a broken connection was made again.
    pub recoveries: u32,
    /// For how long there was none, all together.
    #[serde(rename = "interrupted_ms", with = "millis")]
    pub interrupted: Duration,
}

impl PostCopyReport {
    /// Nothing has arrived yet of these pages.
    #[must_use]
    pub fn of(pages: PageCount) -> Self {
        Self { pages, ..Self::default() }
    }
}

/// How long faults took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultTimes {
    /// Half of them took no longer.
    pub p50: u64,
    /// Nine in ten.
    pub p90: u64,
    /// All but one in a hundred.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// What one thread lost to faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadLoss {
    /// Its id at the destination.
    pub thread: u32,
    /// Its faults.
    pub faults: u64,
    /// How long it waited for them.
    #[serde(rename = "lost_ms", with = "millis")]
    pub lost: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender() -> PostCopyReport {
        PostCopyReport {
            urgent_pages: PageCount(120),
            bulk_pages: PageCount(9880),
            requests: Some(150),
            recoveries: 1,
            interrupted: Duration::from_micros(2_100_500),
            ..PostCopyReport::of(PageCount(10_000))
        }
    }

    fn receiver() -> PostCopyReport {
        PostCopyReport {
            faults: Some(150),
            fault_us: Some(FaultTimes { p50: 210, p90: 480, p99: 1200, max: 3400 }),
            requests: None,
            lost: Some(Duration::from_micros(45_250)),
            threads: vec![ThreadLoss { thread: 4711, faults: 150, lost: Duration::from_micros(45_250) }],
            ..sender()
        }
    }

    #[test]
    fn each_end_says_what_it_knows() {
        let golden = concat!(
            r#"{"pages":10000,"urgent_pages":120,"bulk_pages":9880,"requests":150,"recoveries":1,"interrupted_ms":2100.5}"#,
            "\n",
            r#"{"pages":10000,"faults":150,"fault_us":{"p50":210,"p90":480,"p99":1200,"max":3400},"urgent_pages":120,"bulk_pages":9880,"#,
            r#""lost_ms":45.25,"threads":[{"thread":4711,"faults":150,"lost_ms":45.25}],"recoveries":1,"interrupted_ms":2100.5}"#,
        );
        let json = [sender(), receiver()].map(|report| serde_json::to_string(&report).unwrap());
        assert_eq!(json.join("\n"), golden);
    }

    #[test]
    fn what_was_written_is_read_back() {
        let starved = PostCopyReport { starved: Some(Duration::from_millis(61_500)), ..receiver() };
        assert!(serde_json::to_string(&starved).unwrap().contains(r#","starved_ms":61500.0,"#));
        for report in [PostCopyReport::default(), sender(), receiver(), starved] {
            let json = serde_json::to_string(&report).unwrap();
            assert_eq!(serde_json::from_str::<PostCopyReport>(&json).unwrap(), report, "{json}");
        }
        assert_eq!(serde_json::from_str::<PostCopyReport>(r#"{"pages":3}"#).unwrap(), PostCopyReport::of(PageCount(3)));
    }
}
