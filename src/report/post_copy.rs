//! What happened after a guest was moved before its memory: how its pages followed, and what it waited for.
//!
//! The source knows which pages were asked for, the destination how long each was waited for; the pictures take each from
//! the end that knows it.

use super::bars::{Bar, Bars, Length};
use super::markup::{Element, element};
use super::pairing::Ends;
use super::quantity::Unit;
use super::read::{FaultTimes, Figure, PostCopy};
use super::stack::Stack;
use super::table::{self, Table};

/// Post-copy as both ends saw it.
pub(super) struct Followed<'a> {
    sender: Option<&'a PostCopy>,
    receiver: Option<&'a PostCopy>,
}

impl<'a> Followed<'a> {
    /// `None` when the guest and its memory moved together.
    pub(super) fn of(ends: &Ends<'a>) -> Option<Self> {
        let [sender, receiver] = [ends.sender, ends.receiver].map(|end| end.and_then(|report| report.post_copy.as_ref()));
        (sender.is_some() || receiver.is_some()).then_some(Self { sender, receiver })
    }

    /// A figure, from the receiver if it has it: it saw what the guest felt.
    fn figure(&self, figure: impl Fn(&PostCopy) -> Option<Figure>) -> Option<f64> {
        [self.receiver, self.sender].into_iter().flatten().find_map(figure).map(|figure| figure.0)
    }

    fn faults(&self) -> Option<&'a FaultTimes> {
        [self.receiver, self.sender].into_iter().flatten().find_map(|end| end.fault_us.as_ref())
    }

    /// Figures that matter most.
    pub(super) fn tiles(&self) -> Vec<(&'static str, String)> {
        let mut tiles = Vec::new();
        tiles.extend(self.figure(|end| end.faults).map(|faults| ("faults on missing pages", Unit::Pages.show(faults))));
        let slow = self.faults().and_then(|times| times.p99);
        tiles.extend(slow.map(|time| ("fault, 99th percentile", micros(time.0))));
        tiles
    }

    /// In words.
    pub(super) fn note(&self) -> Option<Element> {
        let mut words = Vec::new();
        if let (Some(faults), Some(lost)) = (self.figure(|end| end.faults), self.figure(|end| end.lost_ms)) {
            words.push(format!("The guest touched missing memory {} times and waited {} for it.", Unit::Pages.show(faults), Unit::Millis.show(lost)));
        }
        if let Some(times) = self.figure(|end| end.recoveries).filter(|times| *times > 0.0) {
            let time = self.figure(|end| end.interrupted_ms).unwrap_or_default();
            let times = if times == 1.0 { "once".to_owned() } else { format!("{} times", Unit::Pages.show(times)) };
            words.push(format!("The connection broke and was made again {times}; for {} there was none.", Unit::Millis.show(time)));
        }
        if let Some(time) = self.figure(|end| end.starved_ms) {
            words.push(format!("The sender was there and brought nothing for up to {}.", Unit::Millis.show(time)));
        }
        (!words.is_empty()).then(|| element("p").class("note").text(words.join(" ")))
    }

    /// The pictures: pages by how they went, faults by how long they took.
    pub(super) fn pictures(&self, id: &str) -> Vec<Element> {
        let mut pictures = Vec::new();
        let pages = self.figure(|end| end.pages).unwrap_or_default();
        let parts: Vec<_> = [("pushed", self.figure(|end| end.bulk_pages)), ("sent at once for a fault", self.figure(|end| end.urgent_pages))]
            .into_iter()
            .filter_map(|(name, pages)| Some((name.to_owned(), pages?)))
            .collect();
        if pages > 0.0 && !parts.is_empty() {
            let title = "Pages that followed the guest";
            let stack = Stack { id: format!("{id}-followed"), title, unit: Unit::Pages, parts: &parts, whole: Some((pages, "neither")) };
            pictures.push(element("div").children(stack.draw()));
        }
        if let Some(times) = self.faults() {
            let mut picture = element("div").child(latencies(format!("{id}-faults"), times));
            picture = picture.children(self.threads());
            pictures.push(picture);
        }
        pictures
    }

    /// What each thread of the guest lost.
    fn threads(&self) -> Option<Element> {
        let threads = &self.receiver?.threads;
        let columns = [table::words("Thread"), table::figures("Faults"), table::figures("Waited")];
        let mut table = Table::new("Time that threads waited for missing pages", &columns);
        for thread in threads {
            let id = super::quantity::number(thread.thread.0, 0);
            table.row([id, Unit::Pages.show(thread.faults.0), Unit::Millis.show(thread.lost_ms.0)]);
        }
        (!threads.is_empty()).then(|| table.draw())
    }
}

/// From reading the fault to the page in its place.
fn latencies(id: String, times: &FaultTimes) -> Element {
    let bar = |name: &str, time: Option<Figure>| {
        let length = match time {
            Some(time) => Length::Of(vec![("post-copy", time.0 / 1e3)]),
            None => Length::Unknown("not measured".to_owned()),
        };
        Bar { name: name.to_owned(), length, runs: Vec::new() }
    };
    let bars = vec![
        bar("half took at most", times.p50),
        bar("90 % took at most", times.p90),
        bar("99 % took at most", times.p99),
        bar("the longest took", times.max),
    ];
    Bars { id, title: "How long the guest waited for a missing page".to_owned(), unit: Unit::Millis, bars, lines: Vec::new() }.draw()
}

/// Microseconds, as people read them.
pub(super) fn micros(micros: f64) -> String {
    Unit::Millis.show(micros / 1e3)
}
