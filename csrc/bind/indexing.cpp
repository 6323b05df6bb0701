// Binds gpu/indexing.h for tests, which check the elements that each GPU thread visits and their
// positions in memory. No sampler calls these.
#include "gpu/indexing.h"

#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <vector>

#include "bind/bind.h"

namespace py = pybind11;

namespace fastsample {

namespace {

// A visited element: (sample, number in C order, memory position within the sample).
using Visit = std::array<int64_t, 3>;

Pack pack_of(const Cut& cut, uint32_t item, int width) {
  if (cut.layout.channels_last) return channels_last_pack(cut, item);
  switch (width) {
    case 4:
      return contiguous_pack<4>(cut, item);
    case 8:
      return contiguous_pack<8>(cut, item);
    default:
      return contiguous_pack<16>(cut, item);
  }
}

// Returns the elements that each item (pack) of a launch visits, in the order of the pack.
std::vector<std::vector<Visit>> pack_positions(int64_t batch, int64_t size, int64_t channels,
                                               int64_t pixels, bool channels_last, int width) {
  if (width != 4 && ((width != 8 && width != 16) || channels_last)) {
    throw std::invalid_argument(
        "pack_positions: width must be 4, or 8 or 16 for contiguous tensors");
  }
  const Cut cut = Cut::of({batch, size, channels, pixels, channels_last}, width);
  std::vector<std::vector<Visit>> packs;
  for (uint32_t item = 0; item < cut.items; ++item) {
    const Pack pack = pack_of(cut, item, width);
    std::vector<Visit>& lanes = packs.emplace_back();
    for (uint32_t j = 0; j < pack.count; ++j) {
      const int64_t element = pack.first + j;
      const int64_t position = channels_last ? channels_last_position(cut, pack, j, 1, 0) : element;
      lanes.push_back({pack.sample, element, position});
    }
  }
  return packs;
}

// Returns the memory positions of one half of a channels_last sample [prediction | v].
std::vector<int64_t> half_positions(int64_t channels, int64_t pixels, int half) {
  const Cut cut = Cut::of({1, channels * pixels, channels, pixels, true}, 4);
  std::vector<int64_t> positions(static_cast<size_t>(channels * pixels), -1);
  for (uint32_t item = 0; item < cut.items; ++item) {
    const Pack pack = channels_last_pack(cut, item);
    for (uint32_t j = 0; j < pack.count; ++j) {
      positions.at(pack.first + j) = channels_last_position(cut, pack, j, 2, half);
    }
  }
  return positions;
}

std::vector<uint32_t> divide(const std::vector<uint32_t>& numerators, uint32_t divisor) {
  if (divisor == 0) throw std::invalid_argument("divide: divisor must be positive, got 0");
  const Divider divider = Divider::by(divisor);
  std::vector<uint32_t> quotients;
  for (const uint32_t n : numerators) quotients.push_back(divider.divide(n));
  return quotients;
}

}  // namespace

void register_indexing(py::module_& module) {
  module.def("pack_positions", &pack_positions, py::arg("batch"), py::arg("size"),
             py::arg("channels"), py::arg("pixels"), py::arg("channels_last"), py::arg("width"));
  module.def("half_positions", &half_positions, py::arg("channels"), py::arg("pixels"),
             py::arg("half"));
  module.def("divide", &divide, py::arg("numerators"), py::arg("divisor"));
}

}  // namespace fastsample
