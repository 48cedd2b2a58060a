//! A line plot, drawn as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::axis::Axis;

/// Colours that most readers can tell apart on white.
pub(super) const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 94, 60),
];
/// Space around the lines of a plot.
pub(super) const GREY: RGBColor = RGBColor(90, 90, 90);
pub(super) const INK: RGBColor = RGBColor(40, 40, 40);
pub(super) const FAINT: RGBColor = RGBColor(225, 225, 225);

pub(super) const WIDTH: u32 = 760;
const HEIGHT: u32 = 360;
const TITLE: u32 = 36;
const ROW: u32 = 20;

/// A line, with or without marked points.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) colour: RGBColor,
    pub(super) dashed: bool,
    pub(super) marked: bool,
    pub(super) points: Vec<(f64, f64)>,
    /// The range of each point's rounds: x, minimum, maximum.
    pub(super) spread: Vec<(f64, f64, f64)>,
}

/// A line plot.
pub(super) struct Lines {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
}

impl Lines {
    /// Draws the plot as SVG.
    pub(super) fn svg(&self) -> Result<String> {
        let head = TITLE + ROW * u32::try_from(self.series.len())? + 6;
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (WIDTH, head + HEIGHT)).into_drawing_area();
            self.draw(&root, head).map_err(|error| anyhow!("{}: {error}", self.title))?;
            root.present().map_err(|error| anyhow!("{}: {error}", self.title))?;
        }
        Ok(svg)
    }

    fn draw(&self, root: &Area<'_>, head: u32) -> Drawn {
        root.fill(&WHITE)?;
        let (top, below) = root.split_vertically(head);
        title(&top, &self.title)?;
        for (row, series) in (0i32..).zip(&self.series) {
            // Above the plot, so that no line crosses the key.
            let y = TITLE.cast_signed() + row * ROW.cast_signed() + 10;
            series.draw_key(&top, y)?;
        }
        let mut chart = ChartBuilder::on(&below)
            .margin_left(8)
            .margin_right(24)
            .margin_top(6)
            .x_label_area_size(50)
            .y_label_area_size(76)
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        chart
            .configure_mesh()
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .label_style(font(12.0))
            .axis_desc_style(font(13.0))
            .x_desc(self.x.label.as_str())
            .y_desc(self.y.label.as_str())
            .draw()?;
        for series in &self.series {
            let line = series.colour.stroke_width(2);
            if series.dashed {
                chart.draw_series(DashedLineSeries::new(series.points.iter().copied(), 6, 4, line))?;
            } else {
                chart.draw_series(LineSeries::new(series.points.iter().copied(), line))?;
            }
            let thin = series.colour.mix(0.6).stroke_width(1);
            let spread = series.spread.iter();
            chart.draw_series(
                spread.map(|&(x, least, most)| PathElement::new([(x, least), (x, most)], thin)),
            )?;
            if series.marked {
                let points = series.points.iter();
                chart.draw_series(points.map(|&point| Circle::new(point, 4, series.colour.filled())))?;
            }
        }
        Ok(())
    }
}

impl Series {
    fn draw_key(&self, area: &Area<'_>, y: i32) -> Drawn {
        let line = self.colour.stroke_width(2);
        let pieces: &[(i32, i32)] =
            if self.dashed { &[(84, 90), (94, 100), (104, 110)] } else { &[(84, 110)] };
        for &(from, to) in pieces {
            area.draw(&PathElement::new([(from, y), (to, y)], line))?;
        }
        if self.marked {
            // A square, because circles are the points of the plot.
            area.draw(&Rectangle::new([(94, y - 3), (100, y + 3)], self.colour.filled()))?;
        }
        area.draw(&Text::new(clipped(&self.name, 88), (118, y - 6), font(13.0)))
    }
}

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
pub(super) type Drawn = Result<(), DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>>;

/// Draws the title at the top left, in a smaller font if it does not fit.
pub(super) fn title(area: &Area<'_>, text: &str) -> Drawn {
    let size = (1_300.0 / text.chars().count() as f64).clamp(9.0, 16.0);
    let style = TextStyle::from(("sans-serif", size * 1.24, FontStyle::Bold).into_font()).color(&INK);
    area.draw(&Text::new(text.to_owned(), (14, 10), style))
}

/// Shortens text to this many letters by leaving out the middle, because parameters are at the end.
pub(super) fn clipped(text: &str, letters: usize) -> String {
    let count = text.chars().count();
    if count <= letters {
        return text.to_owned();
    }
    let end = letters / 3;
    let begin = text.chars().take(letters - end - 1);
    begin.chain(['…']).chain(text.chars().skip(count - end)).collect()
}

/// Returns a font of this height in pixels. The backend divides the size by this factor.
pub(super) fn font(size: f64) -> TextStyle<'static> {
    TextStyle::from(("sans-serif", size * 1.24).into_font()).color(&INK)
}
