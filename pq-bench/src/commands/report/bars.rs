//! A bar plot, drawn as SVG: two bars per row, `pq` and the baseline.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Axis;
use super::format::number;
use super::lines::{Area, COLOURS, Drawn, FAINT, INK, WIDTH, clipped, font, title};

const HEAD: u32 = 44;
const ROW: u32 = 62;
const FOOT: u32 = 52;
const PALE: RGBColor = RGBColor(190, 190, 190);

/// The bars of a figure.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) ours: f64,
    /// Value and description of the baseline.
    pub(super) baseline: Option<(f64, String)>,
}

/// A bar plot.
pub(super) struct Bars {
    pub(super) title: String,
    pub(super) label: String,
    pub(super) rows: Vec<Row>,
}

impl Bars {
    /// Draws the plot as SVG.
    pub(super) fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        {
            let height = HEAD + FOOT + ROW * u32::try_from(self.rows.len())?;
            let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
            self.draw(&root).map_err(|error| anyhow!("{}: {error}", self.title))?;
            root.present().map_err(|error| anyhow!("{}: {error}", self.title))?;
        }
        Ok(svg)
    }

    fn draw(&self, root: &Area<'_>) -> Drawn {
        root.fill(&WHITE)?;
        let (top, below) = root.split_vertically(HEAD);
        title(&top, &self.title)?;
        let most = |row: &Row| row.baseline.as_ref().map_or(row.ours, |(baseline, _)| baseline.max(row.ours));
        let axis = Axis::from_zero(&self.label, self.rows.iter().map(most).fold(0.0, f64::max));
        let rows = self.rows.len() as f64;
        let mut chart = ChartBuilder::on(&below)
            .margin_left(14)
            .margin_right(40)
            .x_label_area_size(FOOT)
            // Rows go from top to bottom.
            .build_cartesian_2d(axis.clone(), rows..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .label_style(font(12.0))
            .axis_desc_style(font(13.0))
            .x_desc(axis.label.as_str())
            .draw()?;
        let area = chart.plotting_area();
        for (at, row) in self.rows.iter().enumerate() {
            let place = |pixels: f64| at as f64 + pixels / f64::from(ROW);
            area.draw(&Text::new(clipped(&row.name, 96), (0.0, place(6.0)), font(13.0)))?;
            let mut bars = vec![(23.0, row.ours, COLOURS[0], "ours")];
            bars.extend(row.baseline.iter().map(|(baseline, what)| (40.0, *baseline, PALE, what.as_str())));
            for (from, value, colour, side) in bars {
                let corners = [(0.0, place(from)), (value, place(from + 15.0))];
                area.draw(&Rectangle::new(corners, colour.filled()))?;
                let text = clipped(&format!("{} {side}", number(value)), 100);
                // Estimated width of the text. It moves to the left of the bar's end if there is no room.
                let (wide, pixel) =
                    (text.chars().count() as f64 * 6.8 + 12.0, axis.to / f64::from(WIDTH - 54));
                let (x, side, inside) = if value + wide * pixel <= axis.to {
                    (value + 6.0 * pixel, HPos::Left, false)
                } else if value >= wide * pixel {
                    (value - 6.0 * pixel, HPos::Right, true)
                } else {
                    (6.0 * pixel, HPos::Left, true)
                };
                let ink = if inside && colour == COLOURS[0] { WHITE } else { INK };
                let style = font(12.0).color(&ink).pos(Pos::new(side, VPos::Center));
                area.draw(&Text::new(text, (x, place(from + 8.0)), style))?;
            }
        }
        Ok(())
    }
}
