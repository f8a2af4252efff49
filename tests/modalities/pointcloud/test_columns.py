"""Points in text: names of rows, separators, decimal commas and thousands."""

from pathlib import Path

import numpy as np
import pytest

from modalities.pointcloud.data.formats import read_points

NAMED_ROWS = {
    "pandas": ",x,y,z\n0,0,0,0\n1,1,2,3\n2,4,5,6\n",
    "R": '"x" "y" "z"\n"1" 0 0 0\n"2" 1 2 3\n"3" 4 5 6\n',
    "a class": "class,x,y,z\nchair,0,0,0\nchair,1,2,3\nchair,4,5,6\n",
    "no class": "x,y,z,class\n0,0,0,chair\n1,2,3,chair\n4,5,6,chair\n",
    "a word": "C 0 0 0\nC 1 2 3\nC 4 5 6\n",
    "no numbers": "0 0 0\n1.#QNAN 0 0\n1 2 3\n-nan(ind) -nan(ind) -nan(ind)\n4 5 6\n",
}


@pytest.mark.parametrize("name", NAMED_ROWS)
def test_names_of_rows_are_no_coordinates(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_text(NAMED_ROWS[name])
    np.testing.assert_array_equal(read_points(tmp_path / "a.csv"), [[0, 0, 0], [1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("text", ["3\n0 0 0 9\n1 2 3 9\n4 5 6 9\n", "# x\n0,0,0\n1, 2,3\n4;5;6 // end\n\n"])
def test_columns_come_in_many_dresses(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.pts").write_text(text)
    np.testing.assert_array_equal(read_points(tmp_path / "a.pts"), [[0, 0, 0], [1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    "row",
    [
        "1.100,5;2.000,5;3.000,5",
        "-1.100.200,5;0,5;0,5",
        "1 100,5;0,5;0,5",
        "1\N{NO-BREAK SPACE}100.5;0.5;0.5",
        "1,000.5 2,000.5 3,000.5",
        '"1,000.5","0.5","0.5"',
    ],
)
def test_separators_of_thousands_are_refused(tmp_path: Path, row: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"x;y;z\n0.5;0.5;0.5\n{row}\n")
    with pytest.raises(ValueError, match=rf"a\.csv.*without separators of thousands.* line 3: '{row[0]}"):
        read_points(file)


@pytest.mark.parametrize(
    "row",
    [
        "1,500;2,250;3,125",
        "1,500 2,250 3,125",
        "1.500,2.250,3.125",
        "1.500, 2.250, 3.125",
        "1.5\t2.25\t3.125",
    ],
)
def test_three_decimals_are_no_thousands(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.csv").write_text(f"{row}\n" * 2)
    np.testing.assert_array_equal(read_points(tmp_path / "a.csv"), [[1.5, 2.25, 3.125]] * 2)
