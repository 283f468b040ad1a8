//! Plots the fan-out: the time until the last client has an update, and the memory for each client.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Result;
use crate::report::{Row, grouped, machine, readable};
use crate::server::Kind;
use crate::trial::Scenario;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const SIZE: (u32, u32) = (960, 400);
const INK: RGBColor = RGBColor(0x24, 0x29, 0x2F);
const PALE_INK: RGBColor = RGBColor(0x57, 0x60, 0x6A);
const GRID: RGBColor = RGBColor(0xE3, 0xE6, 0xEA);

/// Available memory fluctuates by tens of MB on its own: divided by fewer clients, that would exceed what they
/// use.
const FEWEST_FOR_MACHINE: usize = 4000;

/// The ratio of an axis to its highest value.
const AIR: f64 = 1.05;

/// The least distance between the labels of two curves.
const LINE_HEIGHT: i32 = 17;

struct Panel {
    title: &'static str,
    unit: &'static str,
    curves: Vec<Curve>,
}

struct Curve {
    name: String,
    kind: Kind,
    dashed: bool,
    /// Pairs of a number of clients and a value, in order. Not empty.
    points: Vec<(f64, f64)>,
}

/// Opens the file before anything is measured, without truncating it.
pub fn open(path: &Path, rows: &[Row]) -> Result<File> {
    if !rows.iter().any(|row| row.scenario == Scenario::FanOut) {
        return Err("--plot needs the scenario fan-out".into());
    }
    let file = File::options().write(true).create(true).truncate(false).open(path);
    file.map_err(|error| format!("--plot {}: {error}", path.display()).into())
}

pub fn write(file: &mut File, rows: &[Row], runs: usize) -> Result<()> {
    let picture = draw(rows, runs)?;
    file.set_len(0)?;
    file.write_all(picture.as_bytes())?;
    Ok(())
}

fn draw(rows: &[Row], runs: usize) -> Result<String> {
    let panels = [time(rows), memory(rows)];
    let mut most: f64 = 0.0;
    for curve in panels.iter().flat_map(|panel| &panel.curves) {
        most = most.max(curve.end().0);
    }
    if most == 0.0 {
        return Err("nothing to plot: every fan-out failed".into());
    }

    let mut picture = String::new();
    let root = SVGBackend::with_string(&mut picture, SIZE).into_drawing_area();
    // An opaque background, because the page around it may be dark.
    root.fill(&WHITE)?;
    let title = format!("One server process, up to {} clients", grouped(most as usize));
    let machine = format!("{}, medians of {runs}; the clients share the machine", machine());
    let (width, height) = (SIZE.0 as i32, SIZE.1 as i32);
    root.draw(&Text::new(title, (width / 2, 14), text(22, INK, HPos::Center, VPos::Top)))?;
    let footer = (width / 2, height - 10);
    root.draw(&Text::new(machine, footer, text(16, PALE_INK, HPos::Center, VPos::Bottom)))?;
    let areas = root.margin(46, 30, 0, 0).split_evenly((1, panels.len()));
    for (panel, area) in panels.iter().zip(&areas) {
        panel.draw(&root, area, most)?;
    }
    root.present()?;
    // They borrow the string.
    drop((root, areas));
    Ok(picture)
}

fn time(rows: &[Row]) -> Panel {
    let mut curves = Vec::new();
    for kind in kinds(rows) {
        let points = points(rows, kind, "last client ms", 0);
        curves.extend(Curve::new(kind.name().to_owned(), kind, false, points));
    }
    Panel { title: "An update reaches the last client", unit: "ms", curves }
}

fn memory(rows: &[Row]) -> Panel {
    let mut curves = Vec::new();
    for kind in kinds(rows) {
        let process = points(rows, kind, "KB/client", 0);
        let machine = points(rows, kind, "machine KB/client", FEWEST_FOR_MACHINE);
        curves.extend(Curve::new(format!("{}, process", kind.name()), kind, false, process));
        curves.extend(Curve::new(format!("{}, machine", kind.name()), kind, true, machine));
    }
    Panel { title: "Memory for each client", unit: "KB", curves }
}

fn kinds(rows: &[Row]) -> Vec<Kind> {
    let mut kinds = Vec::new();
    for row in rows {
        if !kinds.contains(&row.kind) {
            kinds.push(row.kind);
        }
    }
    kinds
}

/// Omits failed measurements.
fn points(rows: &[Row], kind: Kind, figure: &str, fewest: usize) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    for row in rows {
        if row.scenario != Scenario::FanOut || row.kind != kind || row.clients < fewest {
            continue;
        }
        // Negative if other processes have freed memory.
        if let Some(value) = row.figure(figure)
            && value >= 0.0
        {
            points.push((row.clients as f64, value));
        }
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

impl Panel {
    fn draw(&self, root: &Area, area: &Area, most: f64) -> Result<()> {
        let mut highest: f64 = 1.0;
        for &(_, value) in self.curves.iter().flat_map(|curve| &curve.points) {
            highest = highest.max(value);
        }
        // Both axes are linear from zero, so that proportional growth is a straight line.
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, text(19, INK, HPos::Center, VPos::Top))
            .margin_left(12)
            .margin_right(142)
            .x_label_area_size(46)
            .y_label_area_size(54)
            .build_cartesian_2d(0.0..most * AIR, 0.0..highest * AIR)?;
        chart
            .configure_mesh()
            .axis_style(PALE_INK)
            .bold_line_style(GRID)
            .max_light_lines(0)
            .label_style(text(16, INK, HPos::Center, VPos::Center))
            .x_labels(5)
            .y_labels(6)
            .x_label_formatter(&|&clients| grouped(clients as usize))
            .y_label_formatter(&|&value| readable(value))
            .x_desc("clients")
            .y_desc(self.unit)
            .draw()?;

        let mut ends = Vec::new();
        for curve in &self.curves {
            let line = curve.points.iter().copied();
            let stroke = curve.colour().stroke_width(2);
            if curve.dashed {
                chart.draw_series(DashedLineSeries::new(line.clone(), 10, 6, stroke))?;
            } else {
                chart.draw_series(LineSeries::new(line.clone(), stroke))?;
            }
            chart.draw_series(line.map(|point| curve.marker(point)))?;
            let (x, y) = chart.backend_coord(&curve.end());
            ends.push((x, y, &curve.name));
        }
        ends.sort_by_key(|&(_, y, _)| y);
        let mut free_from = 0;
        for (x, y, name) in ends {
            let y = y.max(free_from);
            free_from = y + LINE_HEIGHT;
            let style = text(16, INK, HPos::Left, VPos::Center);
            root.draw(&Text::new(name.as_str(), (x + 11, y), style))?;
        }
        Ok(())
    }
}

impl Curve {
    fn new(name: String, kind: Kind, dashed: bool, points: Vec<(f64, f64)>) -> Option<Curve> {
        if points.is_empty() { None } else { Some(Curve { name, kind, dashed, points }) }
    }

    fn end(&self) -> (f64, f64) {
        self.points[self.points.len() - 1]
    }

    /// The palette of Okabe and Ito, for readers with colour blindness.
    fn colour(&self) -> RGBColor {
        match self.kind {
            Kind::BtcTicker => RGBColor(0x00, 0x72, 0xB2),
            Kind::Axum => RGBColor(0xD5, 0x5E, 0x00),
            Kind::Naive => RGBColor(0xE6, 0x9F, 0x00),
        }
    }

    fn marker<'a>(&self, point: (f64, f64)) -> DynElement<'static, SVGBackend<'a>, (f64, f64)> {
        let colour = self.colour();
        match self.kind {
            Kind::BtcTicker => Circle::new(point, 5, colour.filled()).into_dyn(),
            Kind::Axum => TriangleMarker::new(point, 7, colour.filled()).into_dyn(),
            Kind::Naive => Cross::new(point, 5, colour.stroke_width(2)).into_dyn(),
        }
    }
}

fn text(size: u32, colour: RGBColor, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    let mut style = TextStyle::from(("sans-serif", size));
    style.color = colour.to_backend_color();
    style.pos = Pos::new(horizontal, vertical);
    style
}
