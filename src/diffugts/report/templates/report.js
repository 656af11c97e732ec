"use strict";
for (const slider of document.querySelectorAll(".slider")) {
  const picture = slider.closest("figure").querySelector(".compare");
  const show = () => {
    picture.style.setProperty("--cut", slider.value + "%");
    slider.setAttribute("aria-valuetext", "scan on the left " + slider.value + " %");
  };
  const follow = (event) => {
    const box = picture.getBoundingClientRect();
    slider.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    show();
  };
  slider.addEventListener("input", show);
  picture.addEventListener("pointerdown", (event) => {
    picture.setPointerCapture(event.pointerId);
    follow(event);
  });
  picture.addEventListener("pointermove", (event) => {
    if (event.buttons) follow(event);
  });
  show();
}
